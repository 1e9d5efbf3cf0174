# The first half of `pannier try`: fills the volume from one node.
#   pannier try                                  plays it on this machine
#   nomad job run jobs/try-write.nomad.hcl       runs it on a cluster that has the image
job "try-write" {
  datacenters = ["*"]
  type        = "batch"

  group "write" {
    volume "data" {
      type            = "csi"
      source          = "try"
      access_mode     = "single-node-writer"
      attachment_mode = "file-system"
    }

    task "write" {
      driver = "podman"

      config {
        image   = "localhost/pannier-try:latest"
        command = "/bin/sh"
        args = ["-euc", <<-EOT
          cd /data
          echo "unpacking a source tree"
          mkdir tree
          tar -xf /input/tree.tar -C tree
          find tree -type f | sort > files.txt
          echo "$(wc -l < files.txt) files, $(du -sm tree | cut -f1) MiB"

          echo "taking the checksum of each"
          tr '\n' '\0' < files.txt | xargs -0 sha256sum > sums.txt

          echo "building a database of them, with fsync"
          sed 's/^\([0-9a-f]*\)  \(.*\)$/\1|\2/' sums.txt > rows.txt
          sqlite3 files.db "PRAGMA synchronous=FULL; CREATE TABLE file(sha256 TEXT, path TEXT PRIMARY KEY);" \
            ".import rows.txt file" \
            "CREATE TABLE visit(node TEXT, at TEXT);" \
            "INSERT INTO visit VALUES ('$NODE', datetime('now'));" \
            "SELECT count(*) || ' rows in files.db' FROM file;"
          rm rows.txt
          sync
          sha256sum files.db sums.txt | tee proof.txt
        EOT
        ]
      }

      env {
        NODE = "first"
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
