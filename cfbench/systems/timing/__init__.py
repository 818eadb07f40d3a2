"""What ``cfbench speed generate`` times: our generator, others' beside it, the decoder, kernels."""
