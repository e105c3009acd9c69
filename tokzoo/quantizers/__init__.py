"""Quantizers: latents to codes. One family a file; the contract is `tokzoo.contract.Quantizer`."""
