"""Domains of libvirt: QEMUs whose monitor belongs to libvirt, and is reached through libvirt's API."""
