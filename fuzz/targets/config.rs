//! Configuration text, from a file or from the command line.

use tapster::config::Faults;
use tapster::config::Options;
use tapster::config::Resolved;
use tapster::config::admin_to_toml;
use tapster::config::resolve;
use tapster::config::resolve_toml;
use tapster::config::to_toml;

/// The first byte says what the rest is: a document, or addresses, one to a line, each behind `<` if it is listened on.
///
/// What resolves is printed as a document that resolves to the same. Faults print, and no more of them than people read.
pub(crate) fn config(input: &[u8]) {
    let Some((kind, text)) = input.split_first() else { return };
    let text = String::from_utf8_lossy(text);
    let resolved = if kind % 2 == 0 { resolve_toml(&text) } else { resolve(&addresses(&text)) };
    match resolved {
        Ok(Resolved { config, admin, warnings, .. }) => {
            assert!(warnings.len() <= 101, "{} warnings", warnings.len());
            warnings.iter().for_each(|warning| assert_prints(&warning.to_string()));
            let document = admin_to_toml(&admin) + &to_toml(&config);
            let again = resolve_toml(&document).unwrap_or_else(|faults| panic!("{faults}\n{document}"));
            let printed = admin_to_toml(&again.admin) + &to_toml(&again.config);
            assert_eq!(printed, document, "what is printed is what it comes to");
            assert_eq!(again.admin, admin, "{document}");
            assert_eq!(again.config, config, "{document}");
        }
        Err(Faults(faults)) => {
            assert!(!faults.is_empty());
            let words = Faults(faults).to_string();
            assert!(words.lines().count() <= 102, "{words}");
            words.lines().for_each(assert_prints);
        }
    }
}

fn addresses(lines: &str) -> Options {
    let mut options = Options::default();
    for line in lines.lines().take(8) {
        match line.strip_prefix('<') {
            Some(line) => options.listen.push(line.to_owned()),
            None => options.to.push(line.to_owned()),
        }
    }
    options
}

fn assert_prints(line: &str) {
    assert!(line.len() < 16 << 10, "{} bytes in a line", line.len());
    assert!(!line.chars().any(char::is_control), "{line:?}");
}
