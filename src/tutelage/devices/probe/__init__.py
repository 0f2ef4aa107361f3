"""The probe: times small ONNX graphs on any machine and writes the readings as YAML.

It needs Python 3.9 and newer, onnxruntime and numpy, and nothing else of tutelage: `tutelage probe
--copy` packs this folder into one file that runs elsewhere.
"""
