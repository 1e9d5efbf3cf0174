//! docs/csi.md against the program: each error that a call can end with stands there once, by its own text and its codes,
//! and nothing stands there that no call ends with.

use std::collections::{BTreeMap, BTreeSet};

use csi_driver::grpc::code_of;

use super::page::{code, rows};

mod every;

/// A code as CSI writes it: `NotFound` is `NOT_FOUND`.
fn told(code: &str) -> String {
    let mut name = String::new();
    for letter in code.chars() {
        if letter.is_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.extend(letter.to_uppercase());
    }
    name
}

/// The fixed parts of a text of the page, where `<what varies>` stands between them.
fn fixed(text: &str) -> Vec<String> {
    let parts = text.split('<').enumerate();
    let parts = parts.map(|(n, part)| match n {
        0 => part,
        _ => part.split_once('>').expect("what varies is between < and >").1,
    });
    parts.map(str::to_owned).collect()
}

/// Where in `text` these parts begin, if it ends with them, in this order, with anything between them.
fn said_at(text: &str, parts: &[String]) -> Option<usize> {
    let (last, first) = parts.split_last()?;
    let mut rest = text.strip_suffix(last.as_str())?;
    for part in first.iter().rev() {
        rest = &rest[..rest.rfind(part.as_str())?];
    }
    Some(rest.len())
}

/// `docs/csi.md`, "What a call answers": the codes, what each means.
#[test]
fn the_page_has_every_code_that_a_call_ends_with() {
    let used: BTreeSet<_> = every::every_failure()
        .iter()
        .map(|failure| told(&format!("{:?}", code_of(failure))))
        .collect();
    let on_the_page: BTreeSet<_> = rows("What a call answers")
        .iter()
        .map(|row| code(&row[0])[0].clone())
        .collect();
    assert_eq!(on_the_page, used);
}

/// `docs/csi.md`, "Every error": the text as the program says it, its codes, and what helps.
#[test]
fn the_page_has_every_error_with_its_codes_and_what_helps() {
    let rows = rows("Every error");
    let mut codes: BTreeMap<usize, BTreeSet<String>> = BTreeMap::new();
    let mut missing = BTreeSet::new();
    for failure in every::every_failure() {
        let (text, code) = (failure.to_string(), told(&format!("{:?}", code_of(&failure))));
        let fitting = rows.iter().enumerate().filter_map(|(n, row)| {
            let parts = fixed(&super::page::code(&row[0])[0]);
            said_at(&text, &parts).map(|at| (parts.concat().len(), at, n))
        });
        // What another error is told in has fewer words of its own, or begins before it.
        match fitting.max() {
            Some((_, _, n)) => drop(codes.entry(n).or_default().insert(code)),
            None => drop(missing.insert(format!("{code}: {text}"))),
        }
    }
    assert!(missing.is_empty(), "the page does not have\n{missing:#?}");
    for (n, row) in rows.iter().enumerate() {
        let used = codes.remove(&n);
        let used = used.unwrap_or_else(|| panic!("no call ends with {}", row[0]));
        assert_eq!(code(&row[1]).into_iter().collect::<BTreeSet<_>>(), used, "{}", row[0]);
        assert!(row[2].len() > 10, "what helps against {}?", row[0]);
    }
}
