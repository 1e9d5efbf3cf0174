//! docs/csi.md against the program: what the page names is there, and what is there the page names.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use clap::{CommandFactory, Parser};
use csi_driver::capability::BindFlags;
use csi_driver::credentials::Credentials;
use volume::head::Parameters;

use super::CsiArgs;
use crate::try_job::volume_file;

#[derive(Debug, Parser)]
struct Line {
    #[command(flatten)]
    args: CsiArgs,
}

fn page() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/csi.md");
    std::fs::read_to_string(path).unwrap()
}

/// The first table of a section, as rows of cells, without its head.
pub(super) fn rows(section: &str) -> Vec<Vec<String>> {
    let page = page();
    let begin = format!("\n## {section}\n");
    let (_, text) = page
        .split_once(&begin)
        .unwrap_or_else(|| panic!("there is no section {section}"));
    let text = text.split("\n## ").next().unwrap();
    let table = text.lines().skip_while(|line| !line.starts_with('|'));
    let rows = table
        .take_while(|line| line.starts_with('|'))
        .filter_map(|line| line.strip_prefix("| "));
    let cells = rows.map(|row| {
        row.split(" | ")
            .map(|cell| cell.trim_end_matches('|').trim().to_owned())
            .collect()
    });
    let rows: Vec<Vec<String>> = cells.collect();
    // What has no name in the first cell is a head.
    rows.into_iter().filter(|row| row[0].starts_with('`')).collect()
}

/// The words of a cell that are code.
pub(super) fn code(cell: &str) -> Vec<String> {
    cell.split('`').skip(1).step_by(2).map(str::to_owned).collect()
}

fn names(section: &str) -> Vec<String> {
    rows(section).iter().flat_map(|row| code(&row[0])).collect()
}

#[test]
fn the_page_has_every_option_with_its_variables() {
    let command = Line::command();
    let variable = |arg: &clap::Arg| {
        arg.get_env()
            .and_then(|name| name.to_str())
            .unwrap_or_default()
            .to_owned()
    };
    let arguments = || command.get_arguments().filter(|arg| arg.get_long().is_some());
    let shown = arguments().filter(|arg| !arg.is_hide_set() && arg.get_id() != "config");
    let options: BTreeSet<_> = shown
        .map(|arg| (format!("--{}", arg.get_long().unwrap()), variable(arg)))
        .collect();
    let rows = rows("Options of the plugin");
    let told: BTreeSet<_> = rows
        .iter()
        .map(|row| (code(&row[0])[0].clone(), code(&row[1])[0].clone()))
        .collect();
    assert_eq!(told, options);
    let known: BTreeSet<_> = arguments().map(variable).collect();
    for name in rows.iter().flat_map(|row| code(&row[1])) {
        assert!(known.contains(&name), "{name} is read by no option");
    }
}

#[test]
fn the_page_has_every_parameter_and_says_which_can_be_changed() {
    let unknown = |name: &str| Parameters::from_map(&BTreeMap::from([(name.to_owned(), "1".to_owned())]));
    let known = unknown("colour").unwrap_err().to_string();
    let (_, known) = known.split_once("known are ").unwrap();
    let known: BTreeSet<_> = known.replace(" and ", ", ").split(", ").map(str::to_owned).collect();
    let rows = rows("Parameters of a volume");
    let told: BTreeSet<_> = rows.iter().flat_map(|row| code(&row[0])).collect();
    assert_eq!(told, known);
    for row in &rows {
        let values = code(&row[1]).into_iter().chain(["1000".to_owned(), "8GiB".to_owned()]);
        let values: Vec<_> = values.collect();
        for name in code(&row[0]) {
            let map = |value: &String| BTreeMap::from([(name.clone(), value.clone())]);
            let valid: Vec<_> = values
                .iter()
                .map(map)
                .filter(|map| Parameters::from_map(map).is_ok())
                .collect();
            assert!(!valid.is_empty(), "{name}: none of {values:?} can be");
            let changed = Parameters::default().changed(&valid[0]).is_ok();
            assert_eq!(changed, row[3].starts_with("yes"), "{name}: {}", row[3]);
        }
    }
    // What the page says is the plugin's is refused as such, by its name.
    let page = page();
    let (before, _) = page.split_once("are options of the plugin: all volumes").unwrap();
    let plugins = code(before.rsplit("\n\n").next().unwrap());
    assert!(plugins.len() >= 7, "{plugins:?}");
    for name in plugins {
        assert!(
            unknown(&name).unwrap_err().to_string().contains("option of the plugin"),
            "{name}"
        );
    }
}

#[test]
fn the_page_has_every_mount_flag() {
    for flag in names("Mount flags") {
        let flag = flag.replace("=N", "=7");
        assert!(BindFlags::parse(std::slice::from_ref(&flag)).is_ok(), "{flag}");
    }
    let refused = BindFlags::parse(&["sync".to_owned()]).unwrap_err().to_string();
    let (_, known) = refused.split_once("known are ").unwrap();
    let name = |text: &str| text.split('=').next().unwrap().to_owned();
    let known: BTreeSet<_> = known.replace(" and ", ", ").split(", ").map(name).collect();
    let told: BTreeSet<_> = names("Mount flags").iter().map(|flag| name(flag)).collect();
    assert_eq!(told, known);
}

#[test]
fn the_page_has_every_secret() {
    let secrets = names("Secrets");
    let given = secrets.iter().map(|name| (name.clone(), "x".to_owned()));
    assert!(Credentials::from_secrets(&given.collect()).unwrap().is_some());
    let wrong = HashMap::from([("password".to_owned(), "x".to_owned())]);
    let refused = Credentials::from_secrets(&wrong).unwrap_err().to_string();
    let (_, known) = refused.split_once("known are ").unwrap();
    let known: BTreeSet<_> = known.replace(" and ", ", ").split(", ").map(str::to_owned).collect();
    assert_eq!(secrets.into_iter().collect::<BTreeSet<_>>(), known);
}

/// The volume files of `jobs/` ask for what there is, and the agent's file configures our driver by the name that it has.
#[test]
fn the_volume_and_agent_files_ask_for_what_there_is() {
    let jobs = Path::new(env!("CARGO_MANIFEST_DIR")).join("jobs");
    for name in ["volume.hcl", "try-volume.hcl"] {
        let file = volume_file::read(&jobs.join(name)).unwrap();
        assert_eq!(file.plugin_id, "pannier", "{name}");
        assert!(file.capacity_min_bytes > 0 && !file.access_modes.is_empty(), "{name}");
        Parameters::from_map(&file.parameters.into_iter().collect()).unwrap();
        BindFlags::parse(&file.mount_options.mount_flags).unwrap();
    }
    let text = std::fs::read_to_string(jobs.join("agent.hcl")).unwrap();
    let agent = hcl::parse(&text).unwrap();
    let labels: Vec<_> = agent
        .blocks()
        .filter(|block| block.identifier() == "plugin")
        .map(|block| block.labels()[0].as_str().to_owned())
        .collect();
    assert_eq!(labels, ["nomad-driver-podman", "raw_exec"]);
}
