//! A Nomad volume file (`nomad volume create FILE`), as far as Nomad hands it to a CSI plugin.

use std::path::Path;

use hcl::eval::Context;

use super::hcl_reader::{BodyReader, HclFileError, Source};

/// How a volume is to be mounted: `mount_options`.
#[derive(Debug, Clone, Default)]
pub struct MountOptions {
    /// `fs_type`.
    pub fs_type: String,
    /// `mount_flags`.
    pub mount_flags: Vec<String>,
}

/// A volume to create.
#[derive(Debug)]
pub struct VolumeFile {
    /// `id`: what job files refer to.
    pub id: String,
    /// `name`: what the plugin is asked to create.
    pub name: String,
    /// `plugin_id`.
    pub plugin_id: String,
    /// `capacity_min` in bytes; 0 if not given.
    pub capacity_min_bytes: u64,
    /// `capacity_max` in bytes; 0 if not given.
    pub capacity_max_bytes: u64,
    /// `access_mode` of each capability block.
    pub access_modes: Vec<String>,
    /// `mount_options`.
    pub mount_options: MountOptions,
    /// `parameters`.
    pub parameters: Vec<(String, String)>,
    /// `secrets`.
    pub secrets: Vec<(String, String)>,
}

/// Reads a volume file.
///
/// # Errors
/// Each names the file, the line and the key.
pub fn read(file: &Path) -> Result<VolumeFile, HclFileError> {
    parse(&Source::read(file)?)
}

/// Reads a volume from text that is already there.
///
/// # Errors
/// Each names the file, the line and the key.
pub fn parse(source: &Source) -> Result<VolumeFile, HclFileError> {
    let body = source.parse()?;
    let context = Context::new();
    let mut reader = BodyReader::new(source, &context, String::new(), &body);
    reader.refuse(&["snapshot_id", "clone_id"], "it starts from an empty bucket")?;
    reader.pass_over(&["topology_request", "context", "namespace"]);
    if let Some(kind) = reader.string("type")?
        && kind != "csi"
    {
        return Err(reader.wrong("type", "\"csi\"", &kind.into()));
    }
    let mut volume = VolumeFile {
        id: reader.required_string("id")?,
        name: reader.required_string("name")?,
        plugin_id: reader.required_string("plugin_id")?,
        capacity_min_bytes: size(&mut reader, "capacity_min")?,
        capacity_max_bytes: size(&mut reader, "capacity_max")?,
        access_modes: Vec::new(),
        mount_options: MountOptions::of(&mut reader)?,
        parameters: reader.string_map("parameters")?,
        secrets: reader.string_map("secrets")?,
    };
    for block in reader.blocks("capability") {
        let mut capability = reader.inside(block);
        volume.access_modes.push(capability.required_string("access_mode")?);
        if let Some(mode) = capability.string("attachment_mode")?
            && mode != "file-system"
        {
            return Err(capability.wrong("attachment_mode", "\"file-system\"", &mode.into()));
        }
        capability.finish()?;
    }
    if volume.access_modes.is_empty() {
        return Err(reader.missing("capability"));
    }
    reader.finish()?;
    Ok(volume)
}

impl MountOptions {
    /// Those in the body of a volume, in a volume's file or a job's.
    ///
    /// # Errors
    /// `HclFileError` if they are not as Nomad takes them.
    pub fn of(volume: &mut BodyReader<'_>) -> Result<Self, HclFileError> {
        let Some(block) = volume.block("mount_options")? else {
            return Ok(Self::default());
        };
        let mut options = volume.inside(block);
        let read = Self {
            fs_type: options.string("fs_type")?.unwrap_or_default(),
            mount_flags: options.strings("mount_flags")?.unwrap_or_default(),
        };
        options.finish()?;
        Ok(read)
    }
}

/// A size such as `"10GiB"` or `"500MB"` in bytes; 0 if the key is absent.
fn size(reader: &mut BodyReader<'_>, key: &'static str) -> Result<u64, HclFileError> {
    let Some(text) = reader.string(key)? else {
        return Ok(0);
    };
    parse_size(&text).ok_or_else(|| reader.wrong(key, "a size such as \"10GiB\" or \"500MB\"", &text.clone().into()))
}

fn parse_size(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
    let number: u64 = text[..digits].parse().ok()?;
    let unit: u64 = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 1,
        "k" | "kb" => 1_000,
        "kib" => 1 << 10,
        "m" | "mb" => 1_000_000,
        "mib" => 1 << 20,
        "g" | "gb" => 1_000_000_000,
        "gib" => 1 << 30,
        "t" | "tb" => 1_000_000_000_000,
        "tib" => 1 << 40,
        _ => return None,
    };
    number.checked_mul(unit)
}

#[cfg(test)]
mod tests {
    use super::*;

    const VOLUME: &str = r#"
id           = "files"
name         = "files"
type         = "csi"
plugin_id    = "pannier"
capacity_min = "1GiB"
capability {
  access_mode     = "single-node-writer"
  attachment_mode = "file-system"
}
parameters {
  compression = "zstd"
}
"#;

    #[test]
    fn a_volume_file_gives_what_the_plugin_is_asked_for() {
        let volume = parse(&Source::from_text("volume.hcl", VOLUME)).unwrap();
        assert_eq!((volume.id.as_str(), volume.capacity_min_bytes), ("files", 1 << 30));
        assert_eq!(volume.access_modes, ["single-node-writer"]);
        assert_eq!(volume.parameters, [("compression".to_owned(), "zstd".to_owned())]);
    }

    #[test]
    fn a_wrong_size_and_an_unknown_key_are_named() {
        let error = parse(&Source::from_text("volume.hcl", VOLUME.replace("1GiB", "much")))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("volume.hcl:6") && error.contains("capacity_min"),
            "{error}"
        );
        let error = parse(&Source::from_text("volume.hcl", VOLUME.replace("plugin_id", "plugin"))).unwrap_err();
        assert!(error.to_string().contains("plugin_id"), "{error}");
    }
}
