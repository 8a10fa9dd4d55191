"""A file of ours as a whole: opened, ended, compared, verified, prepared for clones."""
