//! The README's commands must be commands.

use clap::Parser as _;

use crate::args::Cli;

#[test]
fn commands_of_the_readme_are_understood() {
    let readme = include_str!("../README.md");
    let commands: Vec<&str> = readme.lines().filter(|line| line.starts_with("bulkhead ")).collect();
    assert!(commands.len() >= 9, "{commands:?}");
    for command in commands {
        if let Err(error) = Cli::try_parse_from(command.split_whitespace()) {
            panic!("{command}: {error}");
        }
        for file in command.split_whitespace().filter(|word| word.ends_with(".yaml")) {
            let path = format!("{}/{file}", env!("CARGO_MANIFEST_DIR"));
            assert!(std::path::Path::new(&path).is_file(), "{file}");
        }
    }
}
