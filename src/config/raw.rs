//! Configuration as it was written: a tree of values that know their line.
//!
//! A file and the query of an address (`tcp://10.0.0.5:6000?queue=256MiB`) become the same tree, so that
//! everything above this file sees one language. Nothing is judged here but syntax.

use std::ops::Range;

use toml::Spanned;
use toml::de::DeTable;
use toml::de::DeValue;

/// A value and the line it stands on.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Node {
    /// Counted from 1; `None` on the command line.
    pub(super) line: Option<usize>,
    pub(super) value: Value,
}

/// A value as written; those of a query are all [`Value::Text`] or lists of it.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Value {
    Text(String),
    Integer(i64),
    Boolean(bool),
    List(Vec<Node>),
    Table(Table),
    /// A float or a date: no key of ours takes one.
    Other(&'static str),
}

/// Keys and what stands behind them.
pub(super) type Table = Vec<(String, Node)>;

/// What is wrong with the syntax, and on which line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct SyntaxError {
    pub(super) line: Option<usize>,
    pub(super) message: String,
}

impl Node {
    /// A value from the command line.
    pub(super) fn text(text: &str) -> Self {
        Self { line: None, value: Value::Text(text.to_owned()) }
    }
}

impl Value {
    /// What it is, in words for an error.
    pub(super) fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a text",
            Self::Integer(_) => "a number",
            Self::Boolean(_) => "true or false",
            Self::List(_) => "a list",
            Self::Table(_) => "a table",
            Self::Other(kind) => kind,
        }
    }
}

/// The tree of a TOML document and every syntax error in it.
pub(super) fn from_toml(text: &str) -> (Table, Vec<SyntaxError>) {
    let (table, errors) = DeTable::parse_recoverable(text);
    let line_ends: Vec<usize> = text.match_indices('\n').map(|(at, _)| at).collect();
    let line_of = |span: Range<usize>| line_ends.partition_point(|end| *end < span.start) + 1;
    let errors = errors
        .into_iter()
        .map(|error| SyntaxError { line: error.span().map(line_of), message: error.message().to_owned() })
        .collect();
    (table_from(table.get_ref(), &line_of), errors)
}

/// The tree of `key=value&section.key=value`, percent-decoded. A key that comes again makes a list.
pub(super) fn from_query(query: &str) -> (Table, Vec<SyntaxError>) {
    let mut table = Table::new();
    let mut errors = Vec::new();
    for (count, pair) in query.split('&').filter(|pair| !pair.is_empty()).enumerate() {
        if count == PAIRS_MAX {
            let message =
                format!("has more than {PAIRS_MAX} keys behind its `?`: write a configuration file");
            errors.push(SyntaxError { line: None, message });
            break;
        }
        match parse_pair(pair).and_then(|(path, value)| insert(&mut table, &path, Node::text(&value))) {
            Ok(()) => {}
            Err(message) => errors.push(SyntaxError { line: None, message }),
        }
    }
    (table, errors)
}

fn table_from(table: &DeTable<'_>, line_of: &impl Fn(Range<usize>) -> usize) -> Table {
    table.iter().map(|(key, value)| (key.get_ref().to_string(), node_from(value, line_of))).collect()
}

fn node_from(value: &Spanned<DeValue<'_>>, line_of: &impl Fn(Range<usize>) -> usize) -> Node {
    let line = Some(line_of(value.span()));
    let value = match value.get_ref() {
        DeValue::String(text) => Value::Text(text.to_string()),
        DeValue::Integer(number) => i64::from_str_radix(number.as_str(), number.radix())
            .map_or(Value::Other("a number that does not fit"), Value::Integer),
        DeValue::Boolean(flag) => Value::Boolean(*flag),
        DeValue::Array(items) => Value::List(items.iter().map(|item| node_from(item, line_of)).collect()),
        DeValue::Table(table) => Value::Table(table_from(table, line_of)),
        DeValue::Float(_) => Value::Other("a fraction"),
        DeValue::Datetime(_) => Value::Other("a date"),
    };
    Node { line, value }
}

fn parse_pair(pair: &str) -> Result<(String, String), String> {
    let (key, value) =
        pair.split_once('=').ok_or_else(|| format!("`{pair}` has no `=`: write KEY=VALUE behind the `?`"))?;
    Ok((percent_decode(key)?, percent_decode(value)?))
}

/// Puts `node` at `path`; a dot in it leads into a nested table. No key of ours is nested deeper.
fn insert(table: &mut Table, path: &str, node: Node) -> Result<(), String> {
    let (key, rest) = match path.split_once('.') {
        Some((key, rest)) => (key, Some(rest)),
        None => (path, None),
    };
    let Some(rest) = rest else {
        add(table, key, node);
        return Ok(());
    };
    if !table.iter().any(|(present, _)| present == key) {
        table.push((key.to_owned(), Node { line: None, value: Value::Table(Table::new()) }));
    }
    match table.iter_mut().find(|(present, _)| present == key) {
        Some((_, Node { value: Value::Table(inner), .. })) => add(inner, rest, node),
        _ => return Err(format!("`{key}` is given as a value and as a table")),
    }
    Ok(())
}

/// Adds a key; one that is there already makes a list.
pub(super) fn add(table: &mut Table, key: &str, node: Node) {
    match table.iter_mut().find(|(present, _)| present == key) {
        None => table.push((key.to_owned(), node)),
        Some((_, Node { value: Value::List(items), .. })) => items.push(node),
        Some((_, present)) => present.value = Value::List(vec![present.clone(), node]),
    }
}

fn percent_decode(text: &str) -> Result<String, String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut parts = text.split('%');
    bytes.extend(parts.next().unwrap_or_default().bytes());
    for part in parts {
        let code = part.get(..2).filter(|code| code.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let byte = code.and_then(|code| u8::from_str_radix(code, 16).ok());
        bytes.push(byte.ok_or_else(|| {
            format!("`{text}` has a `%` without two hexadecimal digits behind it: write a `%` itself as %25")
        })?);
        bytes.extend(part.bytes().skip(2));
    }
    String::from_utf8(bytes).map_err(|_| format!("`{text}` is not UTF-8 once decoded"))
}

/// Each is compared with those before it.
const PAIRS_MAX: usize = 1000;

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> Value {
        Value::Text(text.to_owned())
    }

    #[test]
    fn every_syntax_error_has_its_line() {
        let (_, errors) = from_toml("workers = \n\nbackend = \"auto\"\nqueue == 3\n");
        let lines: Vec<_> = errors.iter().map(|error| error.line).collect();
        assert!(lines.contains(&Some(1)) && lines.contains(&Some(4)), "{errors:?}");
    }

    #[test]
    fn a_value_knows_its_line() {
        let (table, errors) = from_toml("workers = 2\n[[output]]\nto = \"tcp://a:1\"\n");
        assert_eq!(errors, []);
        let (_, output) = table.iter().find(|(key, _)| key == "output").unwrap();
        let Value::List(outputs) = &output.value else { panic!("{output:?}") };
        let Value::Table(first) = &outputs[0].value else { panic!("{outputs:?}") };
        assert_eq!(first[0], ("to".to_owned(), Node { line: Some(3), value: text("tcp://a:1") }));
    }

    #[test]
    fn a_query_makes_the_tree_that_a_file_would() {
        let (table, errors) = from_query(
            "queue=256MiB&reconnect.min=1s&reconnect.max=2s&name=a%26b%3f&listen=a&listen=b&listen=c",
        );
        assert_eq!(errors, []);
        let node = |value| Node { line: None, value };
        let reconnect = vec![("min".to_owned(), node(text("1s"))), ("max".to_owned(), node(text("2s")))];
        let listen = Value::List(vec![node(text("a")), node(text("b")), node(text("c"))]);
        assert_eq!(
            table,
            vec![
                ("queue".to_owned(), node(text("256MiB"))),
                ("reconnect".to_owned(), node(Value::Table(reconnect))),
                ("name".to_owned(), node(text("a&b?"))),
                ("listen".to_owned(), node(listen)),
            ]
        );
    }

    #[test]
    fn a_broken_query_names_each_of_its_faults() {
        let (table, errors) = from_query("queue&name=%4&to=%zz&mode=%ff&reconnect=1s&reconnect.min=1s&ok=1");
        assert_eq!(errors.len(), 5, "{errors:?}");
        assert_eq!(table.last().unwrap().0, "ok");
    }
}
