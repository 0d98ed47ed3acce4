"""Losses: one equation of the papers per function, without parameters, in float32."""
