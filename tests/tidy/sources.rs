//! Sources as text: which files there are, and what in them is code.

use std::fs;
use std::path::Path;
use std::path::PathBuf;

/// All sources below a folder of the repository: paths relative to that folder, and texts, in order of the paths.
pub(crate) fn read_sources(folder: &str) -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join(folder);
    let mut files = Vec::new();
    list_sources(&folder, &mut files);
    assert!(files.len() > 10, "found only {files:?}");
    files.sort();
    let read = |file: PathBuf| {
        let path =
            file.strip_prefix(&folder).expect("a file below the folder").to_string_lossy().into_owned();
        (path, fs::read_to_string(&file).expect("a source file"))
    };
    files.into_iter().map(read).collect()
}

fn list_sources(folder: &Path, files: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder of sources") {
        let path = entry.expect("an entry of the folder").path();
        if path.is_dir() {
            list_sources(&path, files);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            files.push(path);
        }
    }
}

/// Whether a file holds tests alone.
pub(crate) fn is_test(path: &str) -> bool {
    path.ends_with("/tests.rs") || path.contains("/tests/")
}

/// Lines with their numbers, without comments, up to the tests at the bottom.
pub(crate) fn code_lines(text: &str) -> impl Iterator<Item = (usize, &str)> {
    let lines = text.lines().enumerate().map(|(index, line)| (index + 1, line.trim()));
    let mut lines = lines.peekable();
    std::iter::from_fn(move || {
        let (number, line) = lines.next()?;
        let tests_follow =
            lines.peek().is_some_and(|(_, next)| without_visibility(next).starts_with("mod tests"));
        (line != "#[cfg(test)]" || !tests_follow).then_some((number, line))
    })
    .filter(|(_, line)| !line.starts_with("//"))
}

/// An item without `pub`, `pub(crate)` and the like.
pub(crate) fn without_visibility(line: &str) -> &str {
    let Some(rest) = line.strip_prefix("pub") else { return line };
    let rest = rest.strip_prefix('(').and_then(|rest| rest.split_once(')')).map_or(rest, |(_, rest)| rest);
    rest.strip_prefix(' ').unwrap_or(line)
}

/// All paths in the line that begin with `root`.
pub(crate) fn paths_after<'a>(line: &'a str, root: &str) -> Vec<&'a str> {
    let begins = line.match_indices(root).map(|(at, _)| at);
    begins
        .filter(|at| !line[..*at].ends_with(|c| is_word(c) || c == ':'))
        .map(|at| {
            let path = &line[at..];
            path.split(|c: char| !is_word(c) && c != ':').next().unwrap_or_default().trim_end_matches(':')
        })
        .collect()
}

pub(crate) fn contains_word(line: &str, word: &str) -> bool {
    line.match_indices(word)
        .any(|(at, _)| !line[..at].ends_with(is_word) && !line[at + word.len()..].starts_with(is_word))
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}
