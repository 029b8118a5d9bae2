//! Taking a table apart, key by key; every fault is noted and none ends the walk.

use crate::config::fault::FAULTS_SHOWN;
use crate::config::fault::Fault;
use crate::config::raw::Node;
use crate::config::raw::SyntaxError;
use crate::config::raw::Table;
use crate::config::raw::Value;
use crate::config::value::list;
use crate::config::value::nearest;

/// Collects what is wrong, and what is merely odd.
#[derive(Debug, Default)]
pub(super) struct Findings {
    faults: Vec<Located>,
    // Files that were of use once.
    expired: Vec<Located>,
    warnings: Vec<Located>,
}

/// A fault, and the file and the line to sort it by.
#[derive(Debug)]
struct Located {
    file: usize,
    line: Option<usize>,
    fault: Fault,
}

/// Where a table was written.
#[derive(Clone, Debug, Default)]
pub(super) struct Origin {
    /// The file, or the option of the command line.
    pub(super) source: String,
    /// Which of the files it is.
    pub(super) file: usize,
    /// Where it begins; `None` on the command line.
    pub(super) line: Option<usize>,
    /// Path of the table, empty at the top.
    pub(super) path: String,
    /// ``output `siem` ``, once it has a name; else empty.
    pub(super) label: String,
}

/// A table whose keys are taken one after the other.
///
/// Keys that have been asked for are known; [`Section::finish`] reports all others.
#[derive(Debug)]
pub(super) struct Section<'f> {
    origin: Origin,
    table: Table,
    known: Vec<&'static str>,
    findings: &'f mut Findings,
}

impl Findings {
    /// Notes what is wrong with the syntax of `origin`.
    pub(super) fn syntax(&mut self, origin: &Origin, errors: Vec<SyntaxError>) {
        for SyntaxError { line, message } in errors {
            self.faults.push(origin.locate(line, "", message));
        }
    }

    /// Notes that `key` of the table at `origin` is wrong; an empty key means the whole.
    pub(super) fn fault(&mut self, origin: &Origin, key: &str, message: String) {
        self.faults.push(origin.locate(origin.line, key, message));
    }

    /// Notes that `key` of the table at `origin` is allowed and yet unlikely to be meant.
    pub(super) fn warn(&mut self, origin: &Origin, key: &str, message: String) {
        self.warnings.push(origin.locate(origin.line, key, message));
    }

    /// Faults, files that have expired, and warnings: those of the files by line, then those of the command line.
    pub(super) fn into_sorted(self) -> (Vec<Fault>, Vec<Fault>, Vec<Fault>) {
        let mut warnings = sorted(self.warnings);
        let more = warnings.len().saturating_sub(FAULTS_SHOWN);
        warnings.truncate(FAULTS_SHOWN);
        if more > 0 {
            let message = format!("{more} more remarks are not shown");
            warnings.push(Fault { place: "configuration".to_owned(), key: String::new(), message });
        }
        (sorted(self.faults), sorted(self.expired), warnings)
    }
}

impl<'f> Section<'f> {
    pub(super) fn new(origin: Origin, table: Table, findings: &'f mut Findings) -> Self {
        Self { origin, table, known: Vec::new(), findings }
    }

    /// Says what this table is about in every fault that follows.
    pub(super) fn set_label(&mut self, label: String) {
        self.origin.label = label;
    }

    /// Whether the key was written.
    pub(super) fn has(&self, key: &str) -> bool {
        self.node(key).is_some()
    }

    /// Whether the value of `key` is a list.
    pub(super) fn is_list(&self, key: &str) -> bool {
        matches!(self.node(key), Some(Node { value: Value::List(_), .. }))
    }

    /// Whether the value of `key` is a list of nothing.
    pub(super) fn is_empty_list(&self, key: &str) -> bool {
        matches!(self.node(key), Some(Node { value: Value::List(items), .. }) if items.is_empty())
    }

    /// Where `key` was written.
    pub(super) fn origin_of(&self, key: &str) -> Origin {
        Origin { line: self.line_of(key), path: self.origin.path_of(key), ..self.origin.clone() }
    }

    /// The value of `key`; `None` if it is absent or wrong.
    pub(super) fn take<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&Value) -> Result<T, String>,
    ) -> Option<T> {
        self.known.push(key);
        match parse(&self.node(key)?.value) {
            Ok(value) => Some(value),
            Err(message) => {
                self.fault(key, message);
                None
            }
        }
    }

    /// Replaces `target` by the value of `key`, if it is there and right.
    pub(super) fn set<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&Value) -> Result<T, String>,
        target: &mut T,
    ) {
        if let Some(value) = self.take(key, parse) {
            *target = value;
        }
    }

    /// The values of a list, each on its own; a single value counts as a list of one.
    ///
    /// `None` if the key is absent or any value is wrong.
    pub(super) fn take_list<T>(
        &mut self,
        key: &'static str,
        parse: impl Fn(&Value) -> Result<T, String>,
    ) -> Option<Vec<T>> {
        self.known.push(key);
        let items = match self.node(key)?.clone() {
            Node { value: Value::List(items), .. } => items,
            node => vec![node],
        };
        if items.is_empty() {
            self.fault(key, "must have at least one value".to_owned());
            return None;
        }
        if items.len() > VALUES_MAX {
            self.fault(key, format!("has {} values: at most {VALUES_MAX} are allowed", items.len()));
            return None;
        }
        let mut values = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            match parse(&item.value) {
                Ok(value) => values.push(value),
                Err(message) if items.len() == 1 => self.fault(key, message),
                Err(message) => self.fault_at(item.line, &format!("{key}[{index}]"), message),
            }
        }
        (values.len() == items.len()).then_some(values)
    }

    /// The nested table of `key`.
    pub(super) fn table(&mut self, key: &'static str, example: &str) -> Option<Section<'_>> {
        self.known.push(key);
        let node = self.node(key)?.clone();
        let Value::Table(table) = node.value else {
            self.fault(key, format!("must be a table as in {example}, not {}", node.value.kind()));
            return None;
        };
        let origin = Origin { line: node.line, path: self.origin.path_of(key), ..self.origin.clone() };
        Some(Section::new(origin, table, self.findings))
    }

    /// The tables of `[[key]]`, each with its place; empty if there are none.
    pub(super) fn tables(&mut self, key: &'static str) -> Vec<(Origin, Table)> {
        self.known.push(key);
        let Some(node) = self.node(key) else { return Vec::new() };
        let Value::List(items) = node.value.clone() else {
            self.fault(key, format!("there may be several: write [[{key}]], in double brackets"));
            return Vec::new();
        };
        if items.len() > VALUES_MAX {
            self.fault(key, format!("stands there {} times: at most {VALUES_MAX} are allowed", items.len()));
            return Vec::new();
        }
        let mut tables = Vec::new();
        for (index, item) in items.into_iter().enumerate() {
            let path = format!("{key}[{index}]");
            match item.value {
                Value::Table(table) => {
                    tables.push((Origin { line: item.line, path, ..self.origin.clone() }, table));
                }
                other => {
                    let message = format!("must be a table that begins with [[{key}]], not {}", other.kind());
                    self.fault_at(item.line, &path, message);
                }
            }
        }
        tables
    }

    /// Notes that `key` is wrong.
    pub(super) fn fault(&mut self, key: &str, message: String) {
        self.fault_at(self.line_of(key), key, message);
    }

    /// Notes that `key` is allowed and yet unlikely to be meant.
    pub(super) fn warn(&mut self, key: &str, message: String) {
        let warning = self.origin.locate(self.line_of(key), key, message);
        self.findings.warnings.push(warning);
    }

    /// Notes that the file of `key` was right once, and has expired.
    pub(super) fn expired(&mut self, key: &str, message: String) {
        let expired = self.origin.locate(self.line_of(key), key, message);
        self.findings.expired.push(expired);
    }

    /// Reports every key that nobody asked for, with the nearest that somebody did.
    pub(super) fn finish(mut self) -> Origin {
        let mut unknown = std::mem::take(&mut self.table);
        unknown.retain(|(key, _)| !self.known.contains(&key.as_str()));
        unknown.sort_by_key(|(_, node)| node.line);
        for (index, (key, node)) in unknown.into_iter().enumerate() {
            let known = self.known.iter().copied();
            // What nobody will see need not help.
            let near = if index < FAULTS_SHOWN { nearest(&key, known.clone()) } else { None };
            let message = match near {
                None if index >= FAULTS_SHOWN => "is not a key".to_owned(),
                Some(nearest) => format!("is not a key; did you mean `{nearest}`?"),
                None => format!("is not a key here; the keys are {}", list(known, "and")),
            };
            self.fault_at(node.line, &key, message);
        }
        self.origin
    }

    fn node(&self, key: &str) -> Option<&Node> {
        self.table.iter().find(|(present, _)| present == key).map(|(_, node)| node)
    }

    fn line_of(&self, key: &str) -> Option<usize> {
        self.node(key).map_or(self.origin.line, |node| node.line)
    }

    fn fault_at(&mut self, line: Option<usize>, key: &str, message: String) {
        self.findings.faults.push(self.origin.locate(line, key, message));
    }
}

impl Origin {
    fn path_of(&self, key: &str) -> String {
        match (self.path.is_empty(), key.is_empty()) {
            (true, _) => key.to_owned(),
            (false, true) => self.path.clone(),
            (false, false) => format!("{}.{key}", self.path),
        }
    }

    /// The source, and the line.
    pub(super) fn place(&self) -> String {
        match self.line {
            Some(line) => format!("{}:{line}", self.source),
            None => self.source.clone(),
        }
    }

    fn locate(&self, line: Option<usize>, key: &str, message: String) -> Located {
        let place = Self { line, ..self.clone() }.place();
        let mut key = self.path_of(key);
        if !key.is_empty() && !self.label.is_empty() {
            key = format!("{key} ({})", self.label);
        }
        Located { file: self.file, line, fault: Fault { place, key, message } }
    }
}

/// Values of a list are compared with each other, and with those of other lists.
const VALUES_MAX: usize = 1000;

fn sorted(mut found: Vec<Located>) -> Vec<Fault> {
    found.sort_by_key(|located| (located.line.is_none(), located.file, located.line));
    found.into_iter().map(|located| located.fault).collect()
}
