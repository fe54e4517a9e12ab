//! A test that no source file imports itself through other files: a → b → a, or over any number of steps.
//!
//! An import is a path, in a `use` declaration or in other code, from one file to an item of another file of this
//! crate. A re-export (`pub use`) does not count as an import of the re-exporting file. Test modules are left out.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

/// The segments of a module's path, without the leading `crate`.
type Module = Vec<String>;

#[derive(Default)]
struct Tree {
    /// Source text without comments and tests.
    sources: BTreeMap<Module, String>,
    /// The re-exports of each module: from the exported name to the defining module and the name in that module.
    exports: BTreeMap<Module, BTreeMap<String, (Module, String)>>,
}

impl Tree {
    fn read(&mut self, folder: &Path, module: &Module) {
        for path in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            let name = path.file_stem().unwrap().to_str().unwrap().to_owned();
            let child = [module.as_slice(), std::slice::from_ref(&name)].concat();
            if path.is_dir() {
                self.read(&path, &child);
            } else if name == "mod" || name == "lib" {
                self.sources.insert(module.clone(), code_of(&path));
            } else if name != "tests" {
                self.sources.insert(child, code_of(&path));
            }
        }
    }

    /// Returns the module that defines the item `path`, as used in the module `from`, and the name of the item. Returns
    /// `None` for paths to other crates.
    fn resolve(&self, from: &Module, path: &[&str]) -> Option<(Module, String)> {
        let (mut module, mut rest) = match path.first()? {
            &"crate" => (Vec::new(), &path[1..]),
            &"self" => (from.clone(), &path[1..]),
            &"super" => (from.clone(), path),
            first => {
                let child = [from.as_slice(), &[(*first).to_owned()]].concat();
                (from.clone(), self.sources.contains_key(&child).then_some(path)?)
            }
        };
        while let Some((&"super", left)) = rest.split_first() {
            (_, rest) = (module.pop(), left);
        }
        while let Some((first, left)) = rest.split_first() {
            let child = [module.as_slice(), &[(*first).to_owned()]].concat();
            if !self.sources.contains_key(&child) {
                break;
            }
            (module, rest) = (child, left);
        }
        let name = rest.first().copied().unwrap_or_default().to_owned();
        Some(self.exports.get(&module).and_then(|exports| exports.get(&name)).cloned().unwrap_or((module, name)))
    }

    fn imports(&self) -> BTreeMap<&Module, BTreeSet<Module>> {
        let of = |module: &Module, source: &str| {
            let (uses, code) = split_uses(source);
            let uses = uses.into_iter().filter(|(is_export, _)| !is_export).flat_map(|(_, tree)| paths_of("", &tree));
            let paths = uses.chain(paths_in(&code));
            let found = paths.filter_map(|path| {
                let segments: Vec<&str> = path.split("::").collect();
                Some(self.resolve(module, &segments)?.0)
            });
            found.filter(|target| target != module && !target.is_empty()).collect()
        };
        self.sources.iter().map(|(module, source)| (module, of(module, source))).collect()
    }
}

/// Returns the source of a file without line comments and without the test module, which is the last item of the file.
fn code_of(path: &Path) -> String {
    let text = fs::read_to_string(path).unwrap();
    let lines = text.lines().map(|line| line.split("//").next().unwrap_or_default());
    let is_test_module = |line: &&str| line.trim_end().ends_with("mod tests {");
    lines.take_while(|line| !is_test_module(line)).collect::<Vec<_>>().join("\n")
}

/// Splits a source into its `use` declarations and the other code. The flag of a declaration says whether it is a
/// re-export.
fn split_uses(source: &str) -> (Vec<(bool, String)>, String) {
    let (mut uses, mut code, mut open) = (Vec::new(), String::new(), None::<(bool, String)>);
    for line in source.lines() {
        let trimmed = line.trim_start();
        let (visibility, rest) = match trimmed.find("use ") {
            // Not `pub struct Cause {`.
            Some(at) if at == 0 || (trimmed.starts_with("pub") && trimmed[..at].ends_with(' ')) => {
                (&trimmed[..at], Some(&trimmed[at + 4..]))
            }
            _ => ("", None),
        };
        match (&mut open, rest) {
            (None, Some(rest)) => open = Some((!visibility.is_empty(), rest.to_owned())),
            (None, None) => code.extend([line, "\n"]),
            (Some((_, tree)), _) => tree.push_str(trimmed),
        }
        if let Some((_, tree)) = &open
            && tree.ends_with(';')
        {
            uses.extend(open.take());
        }
    }
    (uses, code)
}

/// Returns every path of a `use` declaration, with its braces expanded.
fn paths_of(prefix: &str, tree: &str) -> Vec<String> {
    let tree = tree.trim().trim_end_matches(';');
    let Some(at) = tree.find('{') else {
        let path = tree.split(" as ").next().unwrap_or_default();
        return vec![format!("{prefix}{path}").trim_end_matches("::self").to_owned()];
    };
    let prefix = format!("{prefix}{}", &tree[..at]);
    let inner = &tree[at + 1..tree.rfind('}').unwrap()];
    let (mut depth, mut items) = (0, vec![String::new()]);
    for letter in inner.chars() {
        depth += i32::from(letter == '{') - i32::from(letter == '}');
        if letter == ',' && depth == 0 {
            items.push(String::new());
        } else {
            items.last_mut().unwrap().push(letter);
        }
    }
    items.iter().filter(|item| !item.trim().is_empty()).flat_map(|item| paths_of(&prefix, item)).collect()
}

/// Returns the paths in code that have more than one segment. That of a visibility, `pub(in crate::a)`, imports
/// nothing.
fn paths_in(code: &str) -> Vec<String> {
    let code = code.replace("pub(in crate::", "pub(in ");
    let words = code.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_' && letter != ':');
    words.map(|word| word.trim_matches(':').to_owned()).filter(|word| word.contains("::")).collect()
}

/// Returns the modules that `start` imports directly or through other modules.
fn reached<'a>(imports: &'a BTreeMap<&Module, BTreeSet<Module>>, start: &'a Module) -> BTreeSet<&'a Module> {
    let (mut found, mut open) = (BTreeSet::new(), vec![start]);
    while let Some(module) = open.pop() {
        open.extend(imports.get(module).into_iter().flatten().filter(|target| found.insert(*target)));
    }
    found
}

#[test]
fn no_file_imports_itself_through_other_files() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut tree = Tree::default();
    tree.read(&root, &Vec::new());
    for (module, source) in &tree.sources {
        let exported = split_uses(source).0.into_iter().filter(|(is_export, _)| *is_export);
        let exported = exported.flat_map(|(_, uses)| paths_of("", &uses)).filter_map(|path| {
            let segments: Vec<&str> = path.split("::").collect();
            let found = tree.resolve(module, &segments)?;
            Some((segments.last().copied().unwrap_or_default().to_owned(), found))
        });
        let exported = exported.collect();
        tree.exports.insert(module.clone(), exported);
    }
    let imports = tree.imports();
    assert!(imports.values().map(BTreeSet::len).sum::<usize>() > 200, "the search finds too few imports");
    let mut circles = Vec::new();
    for (module, targets) in &imports {
        for target in targets {
            if reached(&imports, target).contains(module) {
                circles.push(format!("{} -> {}", module.join("::"), target.join("::")));
            }
        }
    }
    assert!(circles.is_empty(), "these imports are part of a circle:\n{}", circles.join("\n"));
}
