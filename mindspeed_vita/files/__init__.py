"""A leaf: files and folders that appear only when they are whole, their checksums, and safetensors files read and written."""
