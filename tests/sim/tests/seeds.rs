//! A fixed set of seeds, the same run twice, and proof that what is broken is found.

use std::process::{Command, Output};

fn runs(arguments: &[&str]) -> Output {
    let output = Command::new(env!("CARGO_BIN_EXE_gofs-sim")).arg("runs").args(arguments).output();
    output.expect("the simulation can be started")
}

fn text(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr)
}

/// More by hand: `cargo xtask sim --seeds 0..20000`.
#[test]
fn a_fixed_set_of_seeds_violates_nothing() {
    let output = runs(&["--seeds", "0..24", "--keep-going"]);
    assert!(
        output.status.success(),
        "{}\nrepeat one with: cargo xtask sim --seed N --log info",
        text(&output)
    );
}

#[test]
fn a_seed_is_one_run() {
    let output = runs(&["--seeds", "100..102", "--twice"]);
    assert!(output.status.success(), "{}", text(&output));
}

/// Runs until the invariant is violated, in at most so many seeds.
fn is_found(broken: &str, invariants: &[&str], seeds: &str) {
    let output = runs(&["--seeds", seeds, "--break", broken]);
    let text = text(&output);
    let found = invariants.iter().any(|invariant| text.contains(&format!("VIOLATION {invariant}")));
    assert!(
        !output.status.success() && found,
        "nothing was found in seeds {seeds} with {broken} broken: {text}"
    );
}

#[test]
fn a_disk_that_lies_about_syncs_is_found() {
    is_found(
        "syncs",
        &["coherent-names", "coherent-blocks", "appended", "prefix", "restart", "same-state"],
        "0..40",
    );
}

#[test]
fn leases_that_are_believed_for_too_long_are_found() {
    is_found("clocks", &["exclusive-leases"], "0..40");
}

#[test]
fn operations_that_never_end_are_found() {
    is_found("net", &["liveness"], "0..20");
}

#[test]
fn a_read_of_what_nobody_wrote_is_found() {
    is_found("told", &["coherent-blocks"], "0..5");
}

#[test]
fn a_lock_that_two_have_is_found() {
    is_found("locks", &["exclusive-locks"], "0..5");
}

#[test]
fn an_inode_number_given_twice_is_found() {
    is_found("inodes", &["inode-numbers"], "0..5");
}
