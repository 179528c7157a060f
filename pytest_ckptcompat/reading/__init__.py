"""The bytes of a checkpoint: files and URLs opened safely, read at places, made into tensors on demand."""
