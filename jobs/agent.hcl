# nomad agent -config=agent.hcl
#
# A Nomad agent that can run Podman tasks and Pannier's volumes. Put the binaries `nomad-driver-podman` into
# plugin_dir and `pannier` into /usr/local/bin of every client; the agent must run as root there, because it mounts.

data_dir   = "/opt/nomad/data"
plugin_dir = "/opt/nomad/plugins"

server {
  enabled          = true
  bootstrap_expect = 1

  # How fast a volume of a lost node becomes free for another one: both are 5 minutes if not set.
  csi_volume_claim_gc_interval  = "1m"
  csi_volume_claim_gc_threshold = "1m"
}

client {
  enabled = true
}

# Our task driver: its name in job files is "podman".
plugin "nomad-driver-podman" {
  config {
    volumes {
      enabled = true
    }
  }
}

# What the CSI plugin runs by: it mounts on the host, so it has no use for a container of its own.
plugin "raw_exec" {
  config {
    enabled = true
  }
}
