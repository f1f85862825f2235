"""Files that leave or enter the process: safe writes, safetensors, and further formats, one module each.

In: NumPy arrays and paths. Out: files, or arrays with everything that the file claims checked first. Called
by checkpoints, data sets, models and the command line. Nothing here executes what a file contains (no
pickle).

* `thalweg.io.files.atomic_write`: a file is either the old one or the complete new one, never a part.
* `thalweg.io.safetensors.save` and `load`: named arrays with text metadata.
"""
