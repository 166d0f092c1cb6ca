//! Manual pages and shell completions.

use std::{fmt::Write, fs, path::Path};

use anyhow::Context;
use clap::Command;
use clap_complete::{Shell, generate_to};
use clap_mangen::Man;

/// Writes the pages of sections 5 and 8 into `directory`.
///
/// # Errors
/// A file cannot be read or written.
pub(crate) fn write_pages(directory: &Path, command: Command, config: &Path) -> anyhow::Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    write_page(directory, command.disable_help_subcommand(true), "berthd".to_owned())?;
    let text = fs::read_to_string(config).with_context(|| format!("read {}", config.display()))?;
    let path = directory.join("berth-config.toml.5");
    fs::write(&path, config_page(&text)).with_context(|| format!("write {}", path.display()))
}

/// A page for the command, and one for each below it: `berthd-images-import.8`.
fn write_page(directory: &Path, command: Command, name: String) -> anyhow::Result<()> {
    for inner in command.get_subcommands() {
        write_page(directory, inner.clone(), format!("{name}-{}", inner.get_name()))?;
    }
    let mut bytes = Vec::new();
    // A date would be that of the build.
    let page = Man::new(named(command, &name)).title(name.clone()).section("8");
    let page = page.date("").manual("berth");
    page.render(&mut bytes)?;
    let path = directory.join(format!("{name}.8"));
    fs::write(&path, bytes).with_context(|| format!("write {}", path.display()))
}

/// The command as it is typed, in the places of its own name.
fn named(command: Command, name: &str) -> Command {
    command.bin_name(name.replace('-', " ")).display_name(name.to_owned())
}

/// The file with every key and its comment is its own best description.
fn config_page(text: &str) -> String {
    let mut page = String::from(
        ".TH berth-config.toml 5 \"\" \"\" \"berth\"\n.SH NAME\nberth-config.toml \\- configuration of \
         berthd\n.SH SYNOPSIS\n/etc/berth/config.toml\n.SH DESCRIPTION\nThe file may be absent. Unknown \
         keys are refused; \\fBberthd config check\\fR names all that is wrong with it. Options of the \
         command line win.\n.SH ALL KEYS, AT THEIR DEFAULTS\n.nf\n",
    );
    for line in text.lines() {
        // A line may begin with a control character of roff, and have its escape in it.
        let _ = writeln!(page, "\\&{}", line.replace('\\', "\\e").replace('-', "\\-"));
    }
    page + ".fi\n.SH SEE ALSO\nberthd(8)\n"
}

/// Writes one file for each shell, under the name that it looks for.
///
/// # Errors
/// A file cannot be written.
pub(crate) fn write_completions(directory: &Path, mut command: Command) -> anyhow::Result<()> {
    fs::create_dir_all(directory).with_context(|| format!("make {}", directory.display()))?;
    for shell in [Shell::Bash, Shell::Fish, Shell::Zsh] {
        generate_to(shell, &mut command, "berthd", directory).context("write completions")?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_the_configuration_are_text_to_roff() {
        let page = config_page("# a \\ b\n.x = \"y-z\"\n");
        assert!(page.contains("\\&# a \\e b\n\\&.x = \"y\\-z\"\n"), "{page}");
    }
}
