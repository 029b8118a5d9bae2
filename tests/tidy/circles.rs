//! No circles: whoever reads a file can read the files that it imports first, and understand them.
//!
//! A file imports the file that defines what it names: `use crate::queue::Queue` is an import of `queue/channel.rs`, if
//! `queue/mod.rs` says `pub use channel::Queue`. Where `mod.rs` defines it, it is an import of `mod.rs`, by its own children
//! too. `mod x;` and `pub use` in the file of a module import nothing.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::collections::VecDeque;

use crate::sources::code_lines;
use crate::sources::is_test;
use crate::sources::paths_after;
use crate::sources::read_sources;
use crate::sources::without_visibility;

#[test]
fn no_files_import_each_other_in_a_circle() {
    let faults: Vec<_> =
        ["src", "loadgen/src"].into_iter().flat_map(|folder| check(&read_sources(folder))).collect();
    assert!(faults.is_empty(), "\n{}\n", faults.join("\n"));
}

/// Checks the files of one crate, paths and texts. Returns a sentence for each circle.
fn check(files: &[(String, String)]) -> Vec<String> {
    let imports = Modules::of(files).imports(files);
    circles(&imports).iter().map(|circle| describe(circle, &imports)).collect()
}

/// Of each file, the files that it imports, and by which path first.
type Imports<'a> = BTreeMap<&'a str, BTreeMap<&'a str, String>>;

/// Groups of files each of which imports, directly or not, all others of its group.
fn circles<'a>(imports: &Imports<'a>) -> Vec<Vec<&'a str>> {
    let reached: BTreeMap<&str, BTreeSet<&str>> =
        imports.keys().map(|file| (*file, reachable(file, imports))).collect();
    let mut circles = Vec::new();
    let mut seen = BTreeSet::new();
    for (file, others) in &reached {
        let circle: Vec<&str> =
            others.iter().filter(|other| reached[*other].contains(file)).copied().collect();
        if circle.len() > 1 && !seen.contains(file) {
            seen.extend(circle.iter().copied());
            circles.push(circle);
        }
    }
    circles
}

/// The files that `file` imports, directly or not; `file` itself only if it is in a circle.
fn reachable<'a>(file: &str, imports: &Imports<'a>) -> BTreeSet<&'a str> {
    let mut reached = BTreeSet::new();
    let mut next: Vec<&str> = imports[file].keys().copied().collect();
    while let Some(file) = next.pop() {
        if reached.insert(file) {
            next.extend(imports[file].keys());
        }
    }
    reached
}

/// The shortest way from the first file of a circle back to it, and which other files are in circles with it.
fn describe(circle: &[&str], imports: &Imports) -> String {
    let first = circle[0];
    let mut came_from: BTreeMap<&str, &str> = BTreeMap::new();
    let mut next = VecDeque::from([first]);
    while let Some(file) = next.pop_front() {
        for other in imports[file].keys().filter(|other| circle.contains(other)) {
            if !came_from.contains_key(other) {
                came_from.insert(other, file);
                next.push_back(other);
            }
        }
    }
    let (mut steps, mut way) = (Vec::new(), Vec::new());
    let mut file = first;
    loop {
        let importer = came_from[file];
        steps.push(format!("  {importer} imports {}, which is in {file}", imports[importer][file]));
        way.push(importer);
        file = importer;
        if file == first {
            break;
        }
    }
    steps.reverse();
    let others: Vec<_> = circle.iter().filter(|file| !way.contains(file)).collect();
    let others =
        if others.is_empty() { String::new() } else { format!("\n  in circles with these: {others:?}") };
    format!("a circle of {} files:\n{}{others}", steps.len(), steps.join("\n"))
}

/// What the modules of a crate are called.
struct Modules<'a> {
    /// The file of each module, by its path without `crate`.
    files: BTreeMap<Vec<&'a str>, &'a str>,
    /// Of a name that is imported into a module, `pub` or not, the whole path without `crate`.
    names: BTreeMap<(Vec<&'a str>, &'a str), Vec<&'a str>>,
}

impl<'a> Modules<'a> {
    fn of(files: &'a [(String, String)]) -> Self {
        let files = files.iter().filter(|(path, _)| !is_test(path));
        let paths = files.clone().map(|(path, _)| (module_of(path), path.as_str()));
        let mut modules = Self { files: paths.collect(), names: BTreeMap::new() };
        for (path, text) in files {
            let module = module_of(path);
            for (_, line) in code_lines(text) {
                let Some(import) = without_visibility(line).strip_prefix("use ") else { continue };
                let (path, name) = import.trim_end_matches(';').split_once(" as ").unwrap_or((import, ""));
                let Some(path) = modules.absolute(&module, path.trim_end_matches(';')) else { continue };
                let name = Some(name).filter(|name| !name.is_empty()).or(path.last().copied());
                if let Some(name) = name {
                    modules.names.insert((module.clone(), name), path);
                }
            }
        }
        modules
    }

    /// A path that is written in `module`, without `crate`; `None` if it leads into another crate.
    fn absolute(&self, module: &[&'a str], path: &'a str) -> Option<Vec<&'a str>> {
        let mut segments: Vec<_> = path.split("::").collect();
        let mut base = module.to_vec();
        match segments[0] {
            "crate" => base.clear(),
            "self" => {}
            "super" => drop(base.pop()),
            child => {
                base.push(child);
                if !self.files.contains_key(&base) {
                    return None;
                }
            }
        }
        segments.remove(0);
        base.extend(segments);
        Some(base)
    }

    /// The file that defines what an absolute path names.
    fn defining(&self, path: &[&'a str]) -> Option<&'a str> {
        self.defining_within(path, 8)
    }

    /// At most so many re-exports lead to each other: more are a circle among names.
    fn defining_within(&self, path: &[&'a str], reexports_max: usize) -> Option<&'a str> {
        let depth = (0..=path.len()).rev().find(|depth| self.files.contains_key(&path[..*depth]))?;
        let (module, rest) = path.split_at(depth);
        if let (Some(name), Some(fewer)) = (rest.first(), reexports_max.checked_sub(1))
            && let Some(target) = self.names.get(&(module.to_vec(), *name))
        {
            return self.defining_within(&[target, &rest[1..]].concat(), fewer);
        }
        self.files.get(module).copied()
    }

    fn imports(&self, files: &'a [(String, String)]) -> Imports<'a> {
        let files = files.iter().filter(|(path, _)| !is_test(path));
        files.map(|(path, text)| (path.as_str(), self.imports_of(path, text))).collect()
    }

    fn imports_of(&self, file: &'a str, text: &'a str) -> BTreeMap<&'a str, String> {
        let module = module_of(file);
        let children =
            self.files.keys().filter(|path| path.len() == module.len() + 1 && path.starts_with(&module));
        let mut roots: Vec<String> =
            children.filter_map(|path| Some(format!("{}::", path.last()?))).collect();
        let is_module_file = !roots.is_empty();
        roots.extend(["crate::", "self::", "super::"].map(str::to_owned));

        let mut imports = BTreeMap::new();
        for (_, line) in code_lines(text) {
            if is_module_file && line.starts_with("pub") && without_visibility(line).starts_with("use ") {
                continue;
            }
            for path in roots.iter().flat_map(|root| paths_after(line, root)) {
                let Some(absolute) = self.absolute(&module, path) else { continue };
                let defining = self.defining(&absolute).filter(|defining| *defining != file);
                if let Some(defining) = defining {
                    imports.entry(defining).or_insert_with(|| path.to_owned());
                }
            }
        }
        imports
    }
}

/// The path of a file's module without `crate`: `queue/spool/mod.rs` is `["queue", "spool"]`.
fn module_of(file: &str) -> Vec<&str> {
    let path = file.strip_suffix(".rs").unwrap_or(file);
    let mut module: Vec<_> = path.split('/').collect();
    if module.last() == Some(&"mod") || matches!(module[..], ["lib" | "main"]) {
        module.pop();
    }
    module
}

mod the_checker {
    use super::check;

    fn faults(files: &[(&str, &str)]) -> Vec<String> {
        let files: Vec<_> =
            files.iter().map(|(path, text)| ((*path).to_owned(), (*text).to_owned())).collect();
        check(&files)
    }

    #[track_caller]
    fn assert_circle(files: &[(&str, &str)], circle: &str) {
        assert_eq!(faults(files), [circle]);
    }

    #[test]
    fn lets_files_pass_that_import_one_way() {
        let files = [
            ("lib.rs", "mod a;\nmod b;\n"),
            ("a/mod.rs", "mod x;\nmod y;\npub use x::X;\npub(crate) use crate::a::y::Y;\n"),
            ("a/x.rs", "use crate::a::Y;\nuse std::io;\nuse super::y::Z;\nfn f() { self::g() }\n"),
            ("a/y.rs", "// use crate::a::X;\n#[cfg(test)]\nmod tests {\n    use crate::a::X;\n}\n"),
            ("a/tests.rs", "use crate::b::B;\n"),
            ("b.rs", "use crate::a::X;\nfn f() { crate::a::Y::new() }\n"),
        ];
        assert_eq!(faults(&files), [""; 0]);
    }

    #[test]
    fn finds_two_files_that_import_each_other() {
        assert_circle(
            &[("lib.rs", ""), ("a.rs", "use crate::b::B;\n"), ("b.rs", "fn f() { crate::a::g() }\n")],
            "a circle of 2 files:\n  a.rs imports crate::b::B, which is in b.rs\n  b.rs imports crate::a::g, which is in a.rs",
        );
    }

    #[test]
    fn finds_a_circle_through_reexports_of_reexports() {
        assert_circle(
            &[
                ("main.rs", "mod a;\nmod b;\nmod c;\nuse crate::a::X;\n"),
                ("a/mod.rs", "mod x;\npub use x::X as Name;\n"),
                ("a/x.rs", "use crate::c::C;\n"),
                ("b.rs", "pub use crate::a::Name as Other;\n"),
                ("c.rs", "use crate::b::Other;\n"),
            ],
            "a circle of 2 files:\n  a/x.rs imports crate::c::C, which is in c.rs\n  c.rs imports crate::b::Other, which is in a/x.rs",
        );
    }

    #[test]
    fn finds_a_child_that_imports_what_its_parent_defines() {
        let child = ("a/x.rs", "use crate::a::Defined;\n");
        assert_circle(
            &[("lib.rs", ""), ("a/mod.rs", "mod x;\nuse x::X;\nstruct Defined;\n"), child],
            "a circle of 2 files:\n  a/mod.rs imports x::X, which is in a/x.rs\n  a/x.rs imports crate::a::Defined, which is in a/mod.rs",
        );
        let only_reexports = ("a/mod.rs", "mod x;\npub use x::X;\nstruct Defined;\n");
        assert_eq!(faults(&[("lib.rs", ""), only_reexports, child]), [""; 0]);
    }

    #[test]
    fn finds_a_long_circle_once_and_names_the_shortest_way() {
        let faults = faults(&[
            ("lib.rs", ""),
            ("a.rs", "use crate::b::B;\n"),
            ("b.rs", "use crate::c::C;\nuse crate::d::D;\n"),
            ("c.rs", "use crate::a::A;\n"),
            ("d.rs", "use crate::c::C;\n"),
        ]);
        assert_eq!(faults.len(), 1);
        assert!(faults[0].starts_with("a circle of 3 files:\n  a.rs imports crate::b::B, "), "{faults:?}");
        assert!(faults[0].ends_with("in circles with these: [\"d.rs\"]"), "{faults:?}");
    }
}
