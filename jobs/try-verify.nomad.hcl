# The second half of `pannier try`: another node, nothing but the bucket, and every byte is there.
#   pannier try                                  plays it on this machine
#   nomad job run jobs/try-verify.nomad.hcl      runs it on a cluster, after try-write
job "try-verify" {
  datacenters = ["*"]
  type        = "batch"

  group "verify" {
    volume "data" {
      type            = "csi"
      source          = "try"
      access_mode     = "single-node-writer"
      attachment_mode = "file-system"
    }

    task "verify" {
      driver = "podman"

      config {
        image   = "localhost/pannier-try:latest"
        command = "/bin/sh"
        args = ["-euc", <<-EOT
          cd /data
          echo "the database and the list of checksums, byte for byte:"
          sha256sum -c proof.txt

          echo "each file of the tree:"
          sha256sum -c sums.txt > checked.txt
          echo "$(grep -c ': OK$' checked.txt) files verified of $(wc -l < files.txt)"
          test "$(grep -c ': OK$' checked.txt)" -eq "$(wc -l < files.txt)"
          rm checked.txt

          echo "the database: $(sqlite3 files.db 'PRAGMA integrity_check')"
          sqlite3 files.db "INSERT INTO visit VALUES ('$NODE', datetime('now'));" \
            "SELECT 'visited by the ' || node || ' node at ' || at FROM visit;"
          echo "written by the $NODE node" >> log.txt
          sync
        EOT
        ]
      }

      env {
        NODE = "second"
      }

      volume_mount {
        volume      = "data"
        destination = "/data"
      }

      resources {
        cpu    = 500
        memory = 256
      }
    }
  }
}
