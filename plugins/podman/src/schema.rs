//! The hclspec of the plugin's and the task's options: names, types and defaults as Nomad checks them before it sends
//! anything. Whatever stands here is read in config.rs or task_config.rs, and the other way round (a test holds it).
//! A type is an expression of HCL's type language; a default is an HCL expression, so a string has its own quotes.

use proto::nomad::hclspec::{Attr, Block, BlockAttrs, BlockList, Default, Literal, Object, Spec, spec};

/// Attributes of the task block that are plain: name and type.
const TASK_ATTRIBUTES: [(&str, &str); 55] = [
    ("annotations", "list(map(string))"),
    ("apparmor_profile", "string"),
    ("arch", "string"),
    ("args", "list(string)"),
    ("auth_soft_fail", "bool"),
    ("cap_add", "list(string)"),
    ("cap_drop", "list(string)"),
    ("cgroupns", "string"),
    ("command", "string"),
    ("cpu_cfs_period", "number"),
    ("cpu_hard_limit", "bool"),
    ("devices", "list(string)"),
    // A list; a string too, since old job files have one.
    ("entrypoint", "any"),
    ("extra_hosts", "list(string)"),
    ("force_pull", "bool"),
    ("group_add", "list(string)"),
    ("hostname", "string"),
    ("init", "bool"),
    ("init_path", "string"),
    ("interactive", "bool"),
    ("ipc_mode", "string"),
    ("ipv4_address", "string"),
    ("ipv6_address", "string"),
    ("labels", "list(map(string))"),
    ("memory_reservation", "string"),
    ("memory_swap", "string"),
    ("memory_swappiness", "number"),
    ("network_aliases", "list(string)"),
    ("network_mode", "string"),
    ("networks", "list(string)"),
    ("oom_score_adj", "number"),
    ("os", "string"),
    ("pid_mode", "string"),
    ("pids_limit", "number"),
    ("port_map", "list(map(number))"),
    ("ports", "list(string)"),
    ("privileged", "bool"),
    ("readonly_rootfs", "bool"),
    ("runtime", "string"),
    ("security_opt", "list(string)"),
    ("selinux_opts", "list(string)"),
    ("shm_size", "string"),
    ("static_ips", "list(string)"),
    ("static_mac", "string"),
    ("storage_opt", "list(map(string))"),
    ("sysctl", "list(map(string))"),
    ("timezone", "string"),
    ("tmpfs", "list(string)"),
    ("tty", "bool"),
    ("ulimit", "list(map(string))"),
    ("userns", "string"),
    ("uts_mode", "string"),
    ("variant", "string"),
    ("volumes", "list(string)"),
    ("working_dir", "string"),
];

/// The task's `config { .. }`.
#[must_use]
pub fn task() -> Spec {
    let mut attributes: Vec<(&str, Spec)> = TASK_ATTRIBUTES
        .iter()
        .map(|(name, kind)| (*name, attribute(name, kind)))
        .collect();
    let auth = object(vec![
        ("username", attribute("username", "string")),
        ("password", attribute("password", "string")),
        ("tls_verify", with_default(attribute("tls_verify", "bool"), "true")),
    ]);
    let logging = object(vec![
        ("driver", attribute("driver", "string")),
        ("options", attribute("options", "list(map(string))")),
    ]);
    attributes.extend([
        ("image", required("image", "string")),
        (
            "image_pull_timeout",
            with_default(attribute("image_pull_timeout", "string"), "\"5m\""),
        ),
        ("socket", with_default(attribute("socket", "string"), "\"default\"")),
        ("auth", block("auth", auth)),
        ("logging", block("logging", logging)),
        (
            "healthchecks",
            block("healthchecks", object(vec![("disable", attribute("disable", "bool"))])),
        ),
        ("mount", block_list("mount", mount())),
    ]);
    object(attributes)
}

/// One `mount { .. }` of a task.
fn mount() -> Spec {
    let bind = object(vec![
        ("propagation", attribute("propagation", "string")),
        ("selinux", attribute("selinux", "string")),
    ]);
    let tmpfs = object(vec![
        ("size", attribute("size", "number")),
        ("mode", attribute("mode", "number")),
    ]);
    object(vec![
        ("type", attribute("type", "string")),
        ("source", attribute("source", "string")),
        ("target", required("target", "string")),
        ("readonly", attribute("readonly", "bool")),
        ("bind_options", block("bind_options", bind)),
        (
            "volume_options",
            block(
                "volume_options",
                object(vec![("no_copy", attribute("no_copy", "bool"))]),
            ),
        ),
        ("tmpfs_options", block("tmpfs_options", tmpfs)),
    ])
}

/// The agent's `plugin "nomad-driver-podman" { config { .. } }`.
#[must_use]
pub fn plugin() -> Spec {
    let auth = object(vec![
        ("config", attribute("config", "string")),
        ("helper", attribute("helper", "string")),
    ]);
    let volumes = object(vec![
        ("enabled", with_default(attribute("enabled", "bool"), "true")),
        ("selinuxlabel", attribute("selinuxlabel", "string")),
    ]);
    let dangling = object(vec![
        ("enabled", with_default(attribute("enabled", "bool"), "true")),
        ("period", with_default(attribute("period", "string"), "\"5m\"")),
        (
            "creation_grace",
            with_default(attribute("creation_grace", "string"), "\"5m\""),
        ),
        ("dry_run", with_default(attribute("dry_run", "bool"), "false")),
    ]);
    let gc = object(vec![
        ("container", with_default(attribute("container", "bool"), "true")),
        ("image", with_default(attribute("image", "bool"), "false")),
        (
            "image_delay",
            with_default(attribute("image_delay", "string"), "\"3m\""),
        ),
        ("dangling_containers", block("dangling_containers", dangling)),
    ]);
    let options = BlockAttrs {
        name: "options".to_owned(),
        r#type: "string".to_owned(),
        required: false,
    };
    let logging = object(vec![
        ("driver", attribute("driver", "string")),
        ("options", spec_of(spec::Block::BlockAttrs(options))),
    ]);
    let networking = object(vec![(
        "default_rootless_mode",
        attribute("default_rootless_mode", "string"),
    )]);
    let socket = object(vec![
        ("name", attribute("name", "string")),
        ("socket_path", required("socket_path", "string")),
    ]);
    object(vec![
        ("auth", block("auth", auth)),
        ("volumes", with_default(block("volumes", volumes), "{ enabled = true }")),
        ("gc", with_default(block("gc", gc), "{ container = true }")),
        (
            "recover_stopped",
            with_default(attribute("recover_stopped", "bool"), "false"),
        ),
        ("extra_labels", attribute("extra_labels", "list(string)")),
        (
            "logging",
            with_default(block("logging", logging), "{ driver = \"nomad\", options = {} }"),
        ),
        (
            "networking",
            with_default(block("networking", networking), "{ default_rootless_mode = \"\" }"),
        ),
        ("socket", block_list("socket", socket)),
        ("socket_path", attribute("socket_path", "string")),
        ("disable_log_collection", attribute("disable_log_collection", "bool")),
        ("client_http_timeout", attribute("client_http_timeout", "string")),
        ("dns_servers", attribute("dns_servers", "list(string)")),
        ("default_ulimit", attribute("default_ulimit", "list(map(string))")),
        (
            "allow_privileged",
            with_default(attribute("allow_privileged", "bool"), "true"),
        ),
        ("allow_caps", attribute("allow_caps", "list(string)")),
        ("allow_runtimes", attribute("allow_runtimes", "list(string)")),
        ("pids_limit", attribute("pids_limit", "number")),
        (
            "pull_activity_timeout",
            with_default(attribute("pull_activity_timeout", "string"), "\"0\""),
        ),
    ])
}

fn spec_of(block: spec::Block) -> Spec {
    Spec { block: Some(block) }
}

fn attribute(name: &str, kind: &str) -> Spec {
    spec_of(spec::Block::Attr(Attr {
        name: name.to_owned(),
        r#type: kind.to_owned(),
        required: false,
    }))
}

fn required(name: &str, kind: &str) -> Spec {
    spec_of(spec::Block::Attr(Attr {
        name: name.to_owned(),
        r#type: kind.to_owned(),
        required: true,
    }))
}

fn with_default(primary: Spec, value: &str) -> Spec {
    let default = spec_of(spec::Block::Literal(Literal {
        value: value.to_owned(),
    }));
    spec_of(spec::Block::Default(Box::new(Default {
        primary: Some(Box::new(primary)),
        default: Some(Box::new(default)),
    })))
}

fn block(name: &str, nested: Spec) -> Spec {
    let block = Block {
        name: name.to_owned(),
        required: false,
        nested: Some(Box::new(nested)),
    };
    spec_of(spec::Block::BlockValue(Box::new(block)))
}

fn block_list(name: &str, nested: Spec) -> Spec {
    let list = BlockList {
        name: name.to_owned(),
        min_items: 0,
        max_items: 0,
        nested: Some(Box::new(nested)),
    };
    spec_of(spec::Block::BlockList(Box::new(list)))
}

fn object(attributes: Vec<(&str, Spec)>) -> Spec {
    let attributes = attributes
        .into_iter()
        .map(|(name, spec)| (name.to_owned(), spec))
        .collect();
    spec_of(spec::Block::Object(Object { attributes }))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    fn names(spec: &Spec) -> BTreeSet<String> {
        match &spec.block {
            Some(spec::Block::Object(object)) => object.attributes.keys().cloned().collect(),
            _ => panic!("not an object"),
        }
    }

    /// The keys that a reader asks for, taken from its source: no getter takes a key that is not a literal.
    fn asked_for(source: &str) -> BTreeSet<String> {
        let mut keys = BTreeSet::new();
        for getter in [
            "text", "flag", "list", "size", "number", "string", "bool", "strings", "value", "block", "blocks",
            "duration",
        ]
        .iter()
        .chain(&["string_map", "integer_map", "integer", "string"])
        {
            for part in source.split(&format!("{getter}(\"")).skip(1) {
                keys.extend(part.split('"').next().map(str::to_owned));
            }
        }
        keys
    }

    #[test]
    fn every_option_in_the_schema_is_read_by_somebody() {
        let task_source = [
            include_str!("task_config/reader.rs"),
            include_str!("task_config/reader/mounts.rs"),
        ]
        .concat();
        let asked = asked_for(&task_source);
        for name in names(&task()) {
            assert!(
                asked.contains(&name) || name == "image_pull_timeout",
                "{name} would be ignored"
            );
        }
        assert!(task_source.contains("let key = \"image_pull_timeout\""));
        let asked = asked_for(include_str!("config.rs"));
        for name in names(&plugin()) {
            assert!(asked.contains(&name), "{name} would be ignored");
        }
    }

    #[test]
    fn every_name_in_the_schema_is_its_own_key() {
        for spec in [task(), plugin()] {
            let Some(spec::Block::Object(object)) = spec.block else {
                panic!("not an object")
            };
            for name in names(&Spec {
                block: Some(spec::Block::Object(object.clone())),
            }) {
                assert_eq!(inner_name(&object.attributes[&name]), name);
            }
        }
    }

    fn inner_name(spec: &Spec) -> String {
        match spec.block.as_ref().unwrap() {
            spec::Block::Attr(attr) => attr.name.clone(),
            spec::Block::BlockValue(block) => block.name.clone(),
            spec::Block::BlockList(list) => list.name.clone(),
            spec::Block::Default(default) => inner_name(default.primary.as_ref().unwrap()),
            other => panic!("{other:?} has no name"),
        }
    }

    #[test]
    fn only_the_image_must_be_there() {
        let Some(spec::Block::Object(object)) = task().block else {
            panic!("not an object")
        };
        let must = |spec: &Spec| matches!(&spec.block, Some(spec::Block::Attr(attr)) if attr.required);
        let mut required: Vec<&String> = object
            .attributes
            .iter()
            .filter(|(_, spec)| must(spec))
            .map(|(n, _)| n)
            .collect();
        required.sort();
        assert_eq!(required, ["image"]);
    }
}
