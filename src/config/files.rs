//! The files of a configuration: one, several, or those of a folder. Their keys are laid beside each other.

use std::collections::HashMap;
use std::fs;
use std::fs::File;
use std::io;
use std::io::Read;
use std::path::Path;
use std::path::PathBuf;

use crate::config::raw::Table;
use crate::config::section::Findings;
use crate::config::section::Origin;
use crate::config::units::format_size;

/// A file, or what stands in its place.
#[derive(Debug)]
pub(super) struct Document {
    pub(super) origin: Origin,
    pub(super) text: io::Result<String>,
}

/// Reads the files. Of a folder every `*.toml` is read, in order of name; hidden files are not.
pub(super) fn read_files(paths: &[PathBuf]) -> Vec<Document> {
    let mut documents = Vec::new();
    for path in paths {
        match files_of(path) {
            Ok(files) => documents.extend(files.iter().map(|file| (file.clone(), read_text(file)))),
            Err(error) => documents.push((path.clone(), Err(error))),
        }
    }
    let document = |(file, (path, text)): (usize, (PathBuf, io::Result<String>))| {
        let origin = Origin { source: path.display().to_string(), file, ..Origin::default() };
        Document { origin, text }
    };
    documents.into_iter().enumerate().map(document).collect()
}

fn files_of(path: &Path) -> io::Result<Vec<PathBuf>> {
    if !path.is_dir() {
        return Ok(vec![path.to_owned()]);
    }
    let mut files = Vec::new();
    for entry in fs::read_dir(path)? {
        let name = entry?.file_name();
        let is_hidden = name.as_encoded_bytes().starts_with(b".");
        if !is_hidden && Path::new(&name).extension().is_some_and(|extension| extension == "toml") {
            files.push(path.join(name));
        }
    }
    if files.is_empty() {
        return Err(io::Error::other("it is a folder without a file *.toml"));
    }
    files.sort();
    Ok(files)
}

fn read_text(path: &Path) -> io::Result<String> {
    let mut text = String::new();
    File::open(path)?.take(FILE_LEN_MAX + 1).read_to_string(&mut text)?;
    if text.len() as u64 > FILE_LEN_MAX {
        return Err(io::Error::other(format!("it has more than {}", format_size(FILE_LEN_MAX))));
    }
    Ok(text)
}

/// The keys above all tables that stood in the files so far, and where.
#[derive(Debug, Default)]
pub(super) struct SeenKeys(HashMap<String, Origin>);

impl SeenKeys {
    /// Notes the keys of another file. Those that stand in an earlier file too are faults, except tables of which there may be
    /// several.
    pub(super) fn add(&mut self, origin: &Origin, table: &Table, findings: &mut Findings) {
        for (key, node) in table.iter().filter(|(key, _)| !SEVERAL.contains(&&key[..])) {
            let here = Origin { line: node.line, ..origin.clone() };
            match self.0.get(key) {
                Some(there) => {
                    let message = format!("stands in {} too: write it in one of the two", there.place());
                    findings.fault(&here, key, message);
                }
                None => drop(self.0.insert(key.clone(), here)),
            }
        }
    }
}

/// These tables add up.
const SEVERAL: [&str; 2] = ["input", "output"];
/// More is not a configuration but a mistake, `/dev/zero` for one.
const FILE_LEN_MAX: u64 = 1 << 20;

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Options;
    use crate::config::Resolved;
    use crate::config::fault::Faults;
    use crate::config::resolve;

    fn resolved(paths: &[&Path]) -> Result<Resolved, Faults> {
        let config = paths.iter().map(|path| (*path).to_owned()).collect();
        resolve(&Options { config, ..Options::default() })
    }

    fn write(folder: &Path, files: &[(&str, &str)]) {
        for (name, text) in files {
            fs::write(folder.join(name), text).unwrap();
        }
    }

    #[test]
    fn files_and_folders_add_up_in_order_of_name() {
        let folder = tempfile::tempdir().unwrap();
        let outputs = |file: &str| format!("[[output]]\nname = \"{file}\"\nto = \"tcp://a:1\"\n");
        write(
            folder.path(),
            &[
                ("20.toml", &outputs("20")),
                ("10.toml", &format!("workers = 2\n{}{}", outputs("10"), outputs("11"))),
                ("30.toml", "[[input]]\nlisten = \"tcp://127.0.0.1:1\"\n"),
                (".hidden.toml", "x"),
                ("20.toml.bak", "x"),
                ("toml", "x"),
            ],
        );
        let beside = tempfile::NamedTempFile::new().unwrap();
        fs::write(beside.path(), format!("drain_timeout = \"1m\"\n{}", outputs("beside"))).unwrap();
        let config = resolved(&[beside.path(), folder.path()]).unwrap().config;
        let names: Vec<_> = config.outputs.iter().map(|output| output.name.as_str()).collect();
        assert_eq!(names, ["beside", "10", "11", "20"]);
        assert_eq!((config.workers, config.drain_timeout.as_secs(), config.inputs.len()), (2, 60, 1));
    }

    #[test]
    fn a_key_that_stands_in_two_files_names_both_and_every_fault_its_file_and_line() {
        let folder = tempfile::tempdir().unwrap();
        write(
            folder.path(),
            &[
                ("a.toml", "\nworkers = 2\nbackend = \"epol\"\n[[output]]\nname = \"x\"\nto = \"tcp://a:1\""),
                ("b.toml", "workers = 2\nbackend = \"epoll\"\n[[output]]\nname = \"x\"\nto = \"tcp://a\""),
                ("c.toml", "unknown = 1"),
            ],
        );
        let faults = resolved(&[folder.path()]).unwrap_err().0;
        let found: Vec<_> = faults
            .iter()
            .map(|fault| (fault.place.rsplit('/').next().unwrap_or_default(), fault.key.as_str()))
            .collect();
        assert_eq!(
            found,
            [
                ("a.toml:3", "backend"),
                ("b.toml:1", "workers"),
                ("b.toml:2", "backend"),
                ("b.toml:3", "output[0].name (output `x`)"),
                ("b.toml:5", "output[0].to (output `x`)"),
                ("c.toml:1", "unknown"),
            ]
        );
        assert!(faults[1].message.contains("/a.toml:2 too"), "{}", faults[1]);
    }

    #[test]
    fn a_folder_without_a_file_is_a_fault() {
        let folder = tempfile::tempdir().unwrap();
        let faults = resolved(&[folder.path()]).unwrap_err().to_string();
        assert!(faults.contains("a folder without a file *.toml"), "{faults}");
        let gone = resolved(&[Path::new("/nonexistent/a.toml"), folder.path()]).unwrap_err();
        assert_eq!(gone.0.len(), 2, "{gone}");
    }
}
