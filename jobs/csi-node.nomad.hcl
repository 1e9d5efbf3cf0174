# nomad job run -var bucket=BUCKET csi-node.nomad.hcl
#
# The node plugin mounts volumes on every client. The engine that serves the mounts and the keeper that starts it again are
# processes of their own, which this task starts when the first volume is mounted and which go on when the task ends:
# stopping or updating this job interrupts no mount.
# Credentials: the AWS SDK's usual chain of the host (instance role, /root/.aws), or AWS_ACCESS_KEY_ID and
# AWS_SECRET_ACCESS_KEY in env.

variable "bucket" {
  type        = string
  description = "The bucket that holds the volumes"
}

variable "prefix" {
  type        = string
  default     = "pannier"
  description = "Where in the bucket"
}

variable "s3_endpoint" {
  type        = string
  default     = ""
  description = "URL of the store; empty for Amazon's"
}

variable "data_dir" {
  type        = string
  default     = "/opt/nomad/data"
  description = "data_dir of the Nomad clients"
}

job "pannier-node" {
  type = "system"

  group "node" {
    task "plugin" {
      driver = "raw_exec"

      config {
        command = "/usr/local/bin/pannier"
        args    = ["csi", "--mode", "node"]
      }

      env {
        PANNIER_NODE_ID      = "${node.unique.id}"
        PANNIER_BUCKET       = var.bucket
        PANNIER_PREFIX       = var.prefix
        PANNIER_S3_ENDPOINT  = var.s3_endpoint
        PANNIER_STAGING_ROOT = "${var.data_dir}/client/csi/node/pannier"
      }

      csi_plugin {
        id        = "pannier"
        type      = "node"
        mount_dir = "/csi"

        # raw_exec sees the host's paths, so this must be the folder as the host has it: then plugin, engine and Nomad
        # mean the same by a path.
        stage_publish_base_dir = "${var.data_dir}/client/csi/node/pannier"
      }

      resources {
        cpu    = 200
        memory = 128
      }
    }
  }
}
