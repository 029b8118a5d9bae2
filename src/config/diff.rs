//! In what two configurations differ, in words: a line for each key, or for an input or output that comes or goes.

use crate::config::admin::AdminConfig;
use crate::config::render::admin_to_toml;
use crate::config::render::input_keys;
use crate::config::render::output_keys;
use crate::config::render::process_keys;
use crate::relay::RelayConfig;

/// What changes from one configuration to the other. Nothing where the two are the same.
pub fn differences(from: &RelayConfig, to: &RelayConfig) -> Vec<String> {
    let mut lines = changed_keys("", &process_keys(from), &process_keys(to));
    let inputs = |config: &RelayConfig| -> Vec<_> {
        config.inputs.iter().map(|input| (input.name.clone(), input_keys(input))).collect()
    };
    let outputs = |config: &RelayConfig| -> Vec<_> {
        config.outputs.iter().map(|output| (output.name.clone(), output_keys(output))).collect()
    };
    lines.extend(changed_parts("input", &inputs(from), &inputs(to)));
    lines.extend(changed_parts("output", &outputs(from), &outputs(to)));
    lines
}

/// What changes in the keys of the admin addresses. A file that holds another token counts, too.
pub fn admin_differences(from: &AdminConfig, to: &AdminConfig) -> Vec<String> {
    let mut lines = changed_keys("", &admin_to_toml(from), &admin_to_toml(to));
    if from.token_file == to.token_file && from.token != to.token {
        lines.push("admin_token_file: holds another token".to_owned());
    }
    lines
}

/// Names and keys of all inputs, or of all outputs.
fn changed_parts(kind: &str, from: &[(String, String)], to: &[(String, String)]) -> Vec<String> {
    let mut lines = Vec::new();
    for (name, keys) in to {
        match from.iter().find(|(former, _)| former == name) {
            Some((_, former)) => lines.extend(changed_keys(&format!("{kind} {name}: "), former, keys)),
            None => lines.push(format!("{kind} {name}: added")),
        }
    }
    let gone = from.iter().filter(|(name, _)| to.iter().all(|(present, _)| present != name));
    lines.extend(gone.map(|(name, _)| format!("{kind} {name}: removed")));
    lines
}

fn changed_keys(prefix: &str, from: &str, to: &str) -> Vec<String> {
    let value = |document: &str, key: &str| {
        let line =
            document.lines().find_map(|line| line.split_once(" = ").filter(|(other, _)| *other == key));
        line.map_or("(default)".to_owned(), |(_, value)| value.to_owned())
    };
    let mut keys: Vec<&str> = Vec::new();
    for (key, _) in from.lines().chain(to.lines()).filter_map(|line| line.split_once(" = ")) {
        if !keys.contains(&key) && value(from, key) != value(to, key) {
            keys.push(key);
        }
    }
    keys.iter().map(|key| format!("{prefix}{key}: {} -> {}", value(from, key), value(to, key))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::resolve_toml;

    fn config(text: &str) -> RelayConfig {
        resolve_toml(text).unwrap().config
    }

    #[test]
    fn each_key_that_changes_and_each_part_that_comes_or_goes_has_a_line() {
        let from = config(
            "[[input]]\nname = \"a\"\nlisten = \"tcp://127.0.0.1:1\"\n\
             [[output]]\nname = \"siem\"\nto = \"tcp://a:1\"\n[[output]]\nname = \"old\"\nto = \"tcp://b:1\"\n",
        );
        let to = config(
            "drain_timeout = \"3s\"\n[[input]]\nname = \"a\"\nlisten = [\"tcp://127.0.0.1:1\", \"unix:/a\"]\n\
             [[output]]\nname = \"siem\"\nto = \"tcp://a:1\"\nqueue = \"2MiB\"\n[[output]]\nname = \"new\"\nto = \"tcp://b:1\"\n",
        );
        assert_eq!(differences(&from, &from), [""; 0]);
        assert_eq!(
            differences(&from, &to),
            [
                "drain_timeout: \"10s\" -> \"3s\"",
                "input a: listen: [\"tcp://127.0.0.1:1\"] -> [\"tcp://127.0.0.1:1\", \"unix:/a\"]",
                "output siem: queue: \"64MiB\" -> \"2MiB\"",
                "output new: added",
                "output old: removed",
            ]
        );
    }
}
