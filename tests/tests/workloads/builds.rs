//! Builds: make and cargo decide by times what is out of date, write many small files, map them and run what they made.

use std::fs;
use std::path::Path;
use std::process::Command;

use tests::bounded_command::succeeded;
use tests::scratch_volume::ScratchVolume;

use crate::programs;

/// C files of a program, each with a function of its own.
const UNITS: usize = 24;

fn write_c_program(dir: &Path) {
    let (mut calls, mut declarations) = (String::new(), String::new());
    for unit in 0..UNITS {
        let text = format!("#include \"all.h\"\nint unit_{unit}(void) {{ return {unit}; }}\n");
        fs::write(dir.join(format!("unit_{unit}.c")), text).expect("a source file");
        calls += &format!(" + unit_{unit}()");
        declarations += &format!("int unit_{unit}(void);\n");
    }
    fs::write(dir.join("all.h"), declarations).expect("a source file");
    let main = format!("#include <stdio.h>\n#include \"all.h\"\nint main(void) {{ printf(\"%d\\n\", 0{calls}); }}\n");
    fs::write(dir.join("main.c"), main).expect("a source file");
    let makefile = "objects := $(patsubst %.c,%.o,$(wildcard *.c))\n\
                    program: $(objects)\n\tcc -o $@ $^\n\
                    %.o: %.c all.h\n\tcc -c -o $@ $<\n";
    fs::write(dir.join("Makefile"), makefile).expect("a source file");
}

fn make(dir: &Path) -> String {
    succeeded(
        Command::new("make")
            .arg("-j4")
            .arg("-C")
            .arg(dir)
            .env("LC_ALL", "C")
            .env_remove("MAKEFLAGS"),
    )
}

fn sum_of_units() -> String {
    format!("{}\n", (0..UNITS).sum::<usize>())
}

/// What was not touched is not built again, also on a mount that knows times only from the bucket.
#[test]
fn make_builds_what_changed_and_nothing_else() {
    let Some([_, _]) = programs(["make", "cc"]) else { return };
    let mut scratch = ScratchVolume::new();
    let mounted = scratch.mount();
    let dir = mounted.dir().join("program");
    fs::create_dir(&dir).unwrap();
    write_c_program(&dir);
    assert_eq!(make(&dir).matches("cc -c").count(), UNITS + 1);
    assert_eq!(succeeded(&mut Command::new(dir.join("program"))), sum_of_units());
    assert!(make(&dir).contains("up to date"));
    assert!(mounted.unmount().success(), "a clean unmount");
    let mounted = scratch.mount();
    assert!(make(&dir).contains("up to date"));
    succeeded(Command::new("touch").arg(dir.join("unit_3.c")));
    assert_eq!(make(&dir).matches("cc -c").count(), 1);
    assert_eq!(succeeded(&mut Command::new(dir.join("program"))), sum_of_units());
    assert!(mounted.unmount().success(), "a clean unmount");
}

fn cargo(dir: &Path) -> String {
    let mut command = Command::new(env!("CARGO"));
    command.args(["run", "--offline"]).current_dir(dir);
    // This test's own build must not reach the other one.
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("CARGO_") || name.starts_with("RUST") && name != "RUSTUP_HOME" && name != "RUSTUP_TOOLCHAIN"
        {
            command.env_remove(name);
        }
    }
    succeeded(&mut command)
}

/// A workspace of two crates, built and run on the volume; the second time it is fresh.
#[test]
fn cargo_builds_and_finds_its_build_fresh() {
    let mut scratch = ScratchVolume::new();
    let mounted = scratch.mount();
    let dir = mounted.dir().join("crates");
    for (folder, manifest, file, text) in [
        (
            "",
            "[package]\nname = \"shown\"\nedition = \"2021\"\n[dependencies]\nsaid = { path = \"said\" }\n[workspace]\n",
            "src/main.rs",
            "fn main() { println!(\"{}\", said::what()); }\n",
        ),
        (
            "said",
            "[package]\nname = \"said\"\nedition = \"2021\"\n",
            "src/lib.rs",
            "pub fn what() -> &'static str { \"built on a volume\" }\n",
        ),
    ] {
        fs::create_dir_all(dir.join(folder).join("src")).unwrap();
        fs::write(dir.join(folder).join("Cargo.toml"), manifest).unwrap();
        fs::write(dir.join(folder).join(file), text).unwrap();
    }
    let first = cargo(&dir);
    assert!(
        first.contains("Compiling said") && first.contains("built on a volume"),
        "{first}"
    );
    assert!(mounted.unmount().success(), "a clean unmount");
    let mounted = scratch.mount();
    let second = cargo(&dir);
    assert!(
        !second.contains("Compiling") && second.contains("built on a volume"),
        "{second}"
    );
    assert!(mounted.unmount().success(), "a clean unmount");
}
