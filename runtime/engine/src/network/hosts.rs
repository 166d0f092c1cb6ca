//! The names of containers on networks of users in /etc/hosts: a part of the file of each, which is
//! written anew whenever one comes or goes. It is there while the daemon is not.

use std::{
    fmt::Write as _,
    fs::{self, File},
    io::{self, Read, Write},
    path::Path,
};

use super::members::Member;

const BEGIN: &str = "# Containers on the same networks, kept by the engine:\n";
/// Bytes of a file that is looked at.
const MOST: u64 = 1 << 20;
const END: &str = "# End of containers.\n";

/// The lines for these members; nothing for none.
pub(super) fn section<'a>(members: impl Iterator<Item = &'a Member>) -> String {
    let mut text = String::new();
    for member in members {
        let endpoint = member.endpoint.iter();
        for (address, _) in endpoint.flat_map(|it| [it.ipv4, it.ipv6]).flatten() {
            // To write to a string cannot fail.
            let _ = writeln!(text, "{}\t{}", address.addr(), member.names.join(" "));
        }
    }
    match text.is_empty() {
        true => text,
        false => format!("{BEGIN}{text}{END}"),
    }
}

/// Puts the section in the place of an earlier one, and leaves what else is in the file: a container
/// may write to it. The same file, since the container has it mounted.
pub(super) fn replace(path: &Path, section: &str) -> io::Result<()> {
    // The file is as large as a container likes.
    if fs::metadata(path)?.len() > MOST {
        let text =
            format!("a container has made it larger than {MOST} bytes: names are not kept in it");
        return Err(io::Error::new(io::ErrorKind::FileTooLarge, text));
    }
    let mut before = Vec::new();
    File::open(path)?.take(MOST).read_to_end(&mut before)?;
    let text = String::from_utf8_lossy(&before);
    let after = with_section(&text, section);
    if after == text {
        return Ok(());
    }
    let mut file = File::options().write(true).open(path)?;
    // First the text, then the end: who reads in between finds no name missing that stays.
    file.write_all(after.as_bytes())?;
    file.set_len(after.len() as u64)
}

fn with_section(text: &str, section: &str) -> String {
    let without = match text.split_once(BEGIN) {
        Some((before, rest)) => {
            let after = rest.split_once(END).map_or("", |(_, after)| after);
            format!("{before}{after}")
        }
        None => text.to_owned(),
    };
    without + section
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_section_changes() {
        let one = format!("{BEGIN}10.0.0.2\tweb\n{END}");
        let text = with_section("127.0.0.1\tlocalhost\n", &one);
        assert_eq!(text, format!("127.0.0.1\tlocalhost\n{one}"));
        let own = text.clone() + "1.2.3.4\town\n";
        let two = format!("{BEGIN}10.0.0.3\tdb\n{END}");
        assert_eq!(with_section(&own, &two), format!("127.0.0.1\tlocalhost\n1.2.3.4\town\n{two}"));
        assert_eq!(with_section(&own, ""), "127.0.0.1\tlocalhost\n1.2.3.4\town\n");
    }
}
