"""What tests share: registries, stages, images, machines."""
