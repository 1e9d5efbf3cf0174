# nomad job run -var bucket=BUCKET csi-controller.nomad.hcl
#
# The controller creates, publishes and deletes volumes. It keeps nothing but keys that volumes bring along, so any
# number may run.
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

job "pannier-controller" {
  type = "service"

  group "controller" {
    count = 1

    task "plugin" {
      driver = "raw_exec"

      config {
        command = "/usr/local/bin/pannier"
        args    = ["csi", "--mode", "controller"]
      }

      env {
        PANNIER_NODE_ID      = "${node.unique.id}"
        PANNIER_BUCKET       = var.bucket
        PANNIER_PREFIX       = var.prefix
        PANNIER_S3_ENDPOINT  = var.s3_endpoint
        PANNIER_STAGING_ROOT = "${var.data_dir}/client/csi/controller/pannier"
      }

      csi_plugin {
        id        = "pannier"
        type      = "controller"
        mount_dir = "/csi"

        # raw_exec sees the host's paths, so this must be the folder as the host has it.
        stage_publish_base_dir = "${var.data_dir}/client/csi/controller/pannier"
      }

      resources {
        cpu    = 100
        memory = 128
      }
    }
  }
}
