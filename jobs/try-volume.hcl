# The volume of `pannier try`; on a cluster: nomad volume create jobs/try-volume.hcl
id           = "try"
name         = "try"
type         = "csi"
plugin_id    = "pannier"
capacity_min = "1GiB"
capacity_max = "1GiB"

capability {
  access_mode     = "single-node-writer"
  attachment_mode = "file-system"
}
