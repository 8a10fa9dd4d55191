"""Domains of libvirt: QEMUs whose monitor is libvirt's, reached through its API."""
