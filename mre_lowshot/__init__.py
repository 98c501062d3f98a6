"""mre_lowshot: segment every scan of a kind from one to three annotated ones.

The main path: raw dataset -> fingerprint -> plan -> preprocessed cases -> patches -> network -> loss -> trainer ->
checkpoint -> predictor -> export -> evaluation. Data flows one way, and so do imports.
"""

__version__ = "0.1.0"
