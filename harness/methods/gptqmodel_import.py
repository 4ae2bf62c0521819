"""GPTQModel, imported as it has to be: what a branch of the fork server imports for its children (`harness.branches`)."""

from harness.methods.gptqmodel import settle

settle()
