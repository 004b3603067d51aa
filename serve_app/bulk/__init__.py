"""`kinlens index`: many files become photos with their faces, without the job system."""
