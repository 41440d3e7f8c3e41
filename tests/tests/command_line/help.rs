//! `--help` of every command.

use fedllm_tests::process::Ended;

use super::programs;

/// The names in the list of commands.
fn commands(help: &Ended) -> Vec<String> {
    let list = help.stdout.split("Commands:\n").nth(1).unwrap_or_default();
    let lines = list.lines().take_while(|line| !line.is_empty());
    let names = lines.filter(|line| line.starts_with("  ") && !line.starts_with("   "));
    names
        .filter_map(|line| line.split_whitespace().next())
        .filter(|name| !["completions", "help"].contains(name))
        .map(str::to_owned)
        .collect()
}

#[test]
fn every_command_shows_an_example() {
    let programs = programs();
    let server = commands(&programs.server(&["--help"]).ok());
    let client = commands(&programs.client(&["--help"]).ok());
    assert!(server.contains(&"serve".to_owned()), "{server:?}");
    assert!(client.contains(&"prepare".to_owned()), "{client:?}");
    let helps = server.iter().map(|name| programs.server(&[name, "--help"]));
    for help in helps.chain(client.iter().map(|name| programs.client(&[name, "--help"]))) {
        let help = help.ok();
        assert!(help.stdout.contains("Example"), "{help}");
    }
}

#[test]
fn an_unknown_option_is_a_usage_error() {
    let programs = programs();
    programs
        .server(&["serve", "--sped"])
        .failed_with(2)
        .says(&["--sped"]);
    programs
        .client(&["run"])
        .failed_with(2)
        .says(&["--shard", "--model"]);
}
