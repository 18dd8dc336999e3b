"""Why the model wrote this: attention, ablations, edited neighbors, what each document is worth."""
