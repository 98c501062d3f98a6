"""A local web page that shows a folder of predictions: case list, three planes, 3D, reference beside prediction."""
