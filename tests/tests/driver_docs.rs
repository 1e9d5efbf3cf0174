//! The driver's reference for its users: what it shows is what the driver takes, and what the driver takes it shows.

use std::collections::BTreeSet;
use std::path::Path;

use pannier::try_job::{driver_config, hcl_reader::Source, job_file};
use podman_driver::config::Config;
use podman_driver::schema;
use podman_driver::task_config::TaskConfig;
use proto::nomad::hclspec::{Spec, spec};

/// One example: where it begins, and its text.
struct Example {
    place: String,
    text: String,
}

fn page(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs").join(name);
    std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn examples(name: &str) -> Vec<Example> {
    let (mut examples, mut open): (Vec<Example>, Option<Example>) = (Vec::new(), None);
    for (index, line) in page(name).lines().enumerate() {
        match (&mut open, line) {
            (None, "```hcl") => {
                let place = format!("docs/{name}:{}", index + 1);
                let text = String::new();
                open = Some(Example { place, text });
            }
            (Some(_), "```") => examples.extend(open.take()),
            (Some(example), line) => example.text.push_str(&format!("{line}\n")),
            (None, _) => {}
        }
    }
    assert!(open.is_none(), "{name} has an example without an end");
    examples
}

/// Reads an example as the agent and the driver would; what is wrong with it, if anything is.
fn read(example: &Example) -> Result<(), String> {
    let source = Source::from_text(&example.place, &example.text);
    let body = source.parse().map_err(|error| error.to_string())?;
    let outer = body.blocks().next().ok_or("it has no block")?;
    let (schema, inner) = match outer.identifier() {
        "plugin" => {
            let config = outer.body().blocks().find(|block| block.identifier() == "config");
            (schema::plugin(), config.ok_or("the plugin has no config")?)
        }
        "config" => (schema::task(), outer),
        other => return Err(format!("{other} is neither a plugin's block nor a task's config")),
    };
    let context = job_file::task_context();
    let bytes = driver_config::encode(&source, &context, inner.body(), &schema).map_err(|error| error.to_string())?;
    match outer.identifier() {
        "plugin" => Config::decode(&bytes, 0).map(drop).map_err(|error| error.to_string()),
        _ => TaskConfig::decode(&bytes).map(drop).map_err(|error| error.to_string()),
    }
}

/// The names of all options of a schema, those of nested blocks included.
fn names(schema: &Spec, into: &mut BTreeSet<String>) {
    match &schema.block {
        Some(spec::Block::Object(object)) => object.attributes.values().for_each(|nested| names(nested, into)),
        Some(spec::Block::Attr(attr)) => {
            into.insert(attr.name.clone());
        }
        Some(spec::Block::BlockAttrs(block)) => {
            into.insert(block.name.clone());
        }
        Some(spec::Block::BlockValue(block)) => {
            into.insert(block.name.clone());
            block.nested.iter().for_each(|nested| names(nested, into));
        }
        Some(spec::Block::BlockList(block)) => {
            into.insert(block.name.clone());
            block.nested.iter().for_each(|nested| names(nested, into));
        }
        Some(spec::Block::Default(default)) => default.primary.iter().for_each(|nested| names(nested, into)),
        other => panic!("{other:?} is not used by the driver"),
    }
}

/// Goal: whoever copies an example has something that works. Method: each is read through the driver's own schema, and by the
/// driver.
#[test]
fn every_example_is_taken_by_the_driver() {
    for name in ["driver.md", "migration.md"] {
        let examples = examples(name);
        assert!(!examples.is_empty(), "{name} has no examples");
        for example in examples {
            if let Err(error) = read(&example) {
                panic!("{}: {error}\n{}", example.place, example.text);
            }
        }
    }
}

/// Goal: no option is only known to the source. Method: each name of both schemas stands in the text and in an example.
#[test]
fn every_option_is_explained_and_shown() {
    let (text, mut all) = (page("driver.md"), BTreeSet::new());
    names(&schema::plugin(), &mut all);
    names(&schema::task(), &mut all);
    let shown: String = examples("driver.md").into_iter().map(|example| example.text).collect();
    let prose = text.split("```").step_by(2).collect::<String>();
    let words = |text: &str| -> BTreeSet<String> {
        let words = text.split(|c: char| !c.is_alphanumeric() && c != '_');
        words.map(str::to_owned).collect()
    };
    let (shown, explained) = (words(&shown), words(&prose));
    for name in all {
        assert!(explained.contains(&name), "{name} is not explained");
        assert!(shown.contains(&name), "{name} is in no example");
    }
}

/// Goal: an example that would be refused is found. Method: three that are.
#[test]
fn a_wrong_example_is_found() {
    for (text, want) in [
        ("config {\n  image = \"a\"\n  imgae = \"b\"\n}\n", "imgae"),
        ("config {\n  image = \"a\"\n  pids_limit = -7\n}\n", "pids_limit"),
        (
            "plugin \"x\" {\n  config {\n    dns_servers = [\"resolver\"]\n  }\n}\n",
            "dns_servers",
        ),
    ] {
        let (place, text) = ("a test".to_owned(), text.to_owned());
        let error = read(&Example { place, text }).unwrap_err();
        assert!(error.contains(want), "{error}");
    }
}
