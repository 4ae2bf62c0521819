"""GPTQModel, imported as it has to be: what a branch of the fork server imports for its children (`harness.child.branch`)."""

from harness.methods._gptqmodel import import_library

import_library()
