# nomad job run -var bucket=BUCKET -var image=REGISTRY/pannier:0.1.0 csi-node-podman.nomad.hcl
#
# The node plugin in a container, by the Podman driver, for clients where raw_exec is off. The image is made by
# jobs/Containerfile. The engine must not end with a container, so it is a service of the host: install
# jobs/pannier-engine.service first. The plugin itself only makes bind mounts and calls the engine.
# Credentials: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in env, or the instance's role: files of the host, as those in
# /root/.aws, are not in the container. The engine has its own, on the host.

variable "image" {
  type        = string
  description = "The image with pannier in it"
}

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
      driver = "podman"

      config {
        image      = var.image
        args       = ["csi", "--mode", "node"]
        privileged = true
      }

      env {
        PANNIER_NODE_ID      = "${node.unique.id}"
        PANNIER_BUCKET       = var.bucket
        PANNIER_PREFIX       = var.prefix
        PANNIER_S3_ENDPOINT  = var.s3_endpoint
        PANNIER_STAGING_ROOT = "${var.data_dir}/client/csi/node/pannier"
        PANNIER_ENGINE_START = "false"
      }

      csi_plugin {
        id        = "pannier"
        type      = "node"
        mount_dir = "/csi"

        # The same path in the container as on the host: plugin, engine and Nomad mean the same by it.
        stage_publish_base_dir = "${var.data_dir}/client/csi/node/pannier"
      }

      resources {
        cpu    = 200
        memory = 128
      }
    }
  }
}
