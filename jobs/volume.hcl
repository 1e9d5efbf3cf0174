# nomad volume create volume.hcl
#
# A volume for one writer at a time, or one writer and readers anywhere. It lives below the plugin's prefix in the
# bucket; nothing else is needed to mount it on another node.

id        = "data"
name      = "data"
type      = "csi"
plugin_id = "pannier"

# Enforced: writes beyond it fail with "no space left on device". Leave both out for no limit.
capacity_min = "10GiB"
capacity_max = "10GiB"

capability {
  access_mode     = "single-node-writer"
  attachment_mode = "file-system"
}

capability {
  access_mode     = "single-node-reader-only"
  attachment_mode = "file-system"
}

# Readers on other nodes beside the one writer: they see what it has fsynced within seconds.
capability {
  access_mode     = "multi-node-single-writer"
  attachment_mode = "file-system"
}

# Keep this block even where it is empty: without it Nomad refuses to expand the volume while it is in use.
mount_options {
  mount_flags = []
}

# The parameters that can be changed later, with their defaults; docs/csi.md has the others.
parameters {
  durability  = "remote"
  compression = "lz4"
}

# For a volume with keys of its own, instead of the plugin's:
# secrets {
#   access_key_id     = "..."
#   secret_access_key = "..."
# }
