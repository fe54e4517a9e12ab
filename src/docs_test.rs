//! Tests that the documents match this program. The metrics, keys, paths, links and make targets that the documents
//! name exist, every metric is documented, and the English and the Chinese README have the same commands and names.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

/// Prefixes of the names of this program's metrics.
const FAMILIES: [&str; 4] = ["kproxy_", "ktransfer_", "kmonitor_", "http_"];
/// A word in a document that begins with one of these folders is checked as a path.
const FOLDERS: [&str; 8] = ["src/", "conf/", "docs/", "tests/", "benches/", "demo/", "fuzz/", "bin/"];
/// `max_width` of `rustfmt.toml`.
const MAX_COLUMNS: usize = 120;
/// Limit on the length of the README, which users read in one sitting.
const MAX_README_LINES: usize = 150;
/// Limit on the length of one section of `docs/decisions.md`, which summarizes a decision.
const MAX_DECISION_LINES: usize = 8;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// A Markdown file.
struct Document {
    /// Path relative to the root of the repository.
    path: PathBuf,
    text: String,
}

impl Document {
    fn read(path: impl Into<PathBuf>) -> Document {
        let path = path.into();
        let text = fs::read_to_string(root().join(&path)).unwrap_or_else(|cause| panic!("{}: {cause}", path.display()));
        Document { path, text }
    }

    /// Returns the documents for users: both READMEs and the pages under `docs/`.
    fn for_users() -> Vec<Document> {
        let mut pages: Vec<PathBuf> = fs::read_dir(root().join("docs"))
            .unwrap()
            .map(|entry| Path::new("docs").join(entry.unwrap().file_name()))
            .filter(|path| path.extension().is_some_and(|extension| extension == "md"))
            .collect();
        pages.sort();
        pages.extend(["README.md".into(), "README.zh-CN.md".into()]);
        pages.into_iter().map(Document::read).collect()
    }

    fn all() -> Vec<Document> {
        let mut documents = Document::for_users();
        documents.extend(["CONTRIBUTING.md", "conf/zabbix/README.md"].map(Document::read));
        documents
    }

    fn name(&self) -> String {
        self.path.display().to_string()
    }

    /// Returns the text outside of fenced code blocks.
    fn prose(&self) -> String {
        self.text.split("```").step_by(2).collect()
    }

    /// Returns the fenced code blocks, each with its language in the first line.
    fn blocks(&self) -> Vec<&str> {
        self.text.split("```").skip(1).step_by(2).collect()
    }

    /// Returns the inline code of the prose, which is between backticks.
    fn inline_code(&self) -> BTreeSet<String> {
        self.prose().split('`').skip(1).step_by(2).map(str::to_owned).collect()
    }
}

fn rust_files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
        match entry.extension() {
            None if entry.is_dir() => rust_files(&entry, found),
            Some(extension) if extension == "rs" => found.push(entry),
            _ => {}
        }
    }
}

/// Returns the text of each source file of the program; files of tests are left out.
fn sources() -> Vec<String> {
    let mut files = Vec::new();
    rust_files(&root().join("src"), &mut files);
    let is_test = |file: &Path| file.iter().any(|name| name == "tests" || name == "tests.rs");
    files.retain(|file| !is_test(file.strip_prefix(root()).expect("it is below the root")));
    files.into_iter().map(|file| fs::read_to_string(file).unwrap()).collect()
}

/// Returns the words of a text that have a prefix of a metric name; names of binaries are left out.
fn metrics_in(text: &str) -> BTreeSet<&str> {
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
    words
        .filter(|word| {
            FAMILIES.iter().any(|family| word.starts_with(family)) && !word.ends_with("_bin") && !word.ends_with('_')
        })
        .collect()
}

/// Returns the parts of a document outside its blocks of PHP, whose HTTP functions have names like those of metrics.
fn without_php(text: &str) -> impl Iterator<Item = &str> {
    text.split("```php").enumerate().map(|(index, part)| match index {
        0 => part,
        _ => part.split_once("```").map_or("", |(_, rest)| rest),
    })
}

/// Returns the names of the metrics that the code registers: string literals that are a metric name and are followed by
/// another literal, the help text.
fn registered_metrics() -> BTreeSet<String> {
    let mut names = BTreeSet::new();
    for text in sources() {
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap();
        let mut literals = code.split('"').skip(1).step_by(2);
        let mut after = code.split('"').skip(2).step_by(2);
        while let (Some(literal), Some(after)) = (literals.next(), after.next()) {
            let is_name = metrics_in(literal).contains(literal);
            if is_name && after.trim() == "," {
                names.insert(literal.to_owned());
            }
        }
    }
    names
}

/// Returns the texts of the configuration's reference files.
fn reference_files() -> [String; 5] {
    ["kproxy.yaml", "kproxy.credentials.yaml", "ktransfer.yaml", "modules/test_module_1.yaml", "kmonitor.yaml"]
        .map(|name| fs::read_to_string(root().join("conf").join(name)).unwrap())
}

/// Returns the keys of the reference files, including those that are commented out with `# `.
fn config_keys() -> BTreeSet<String> {
    let mut keys = BTreeSet::new();
    for file in reference_files() {
        for line in file.lines() {
            let line = line.trim_start().trim_start_matches("# ").trim_start().trim_start_matches("- ");
            if let Some((key, rest)) = line.split_once(':')
                && key.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_')
                && (rest.is_empty() || rest.starts_with(' '))
            {
                keys.insert(key.to_owned());
            }
        }
    }
    keys
}

#[test]
fn the_docs_list_every_metric_and_no_other() {
    let registered = registered_metrics();
    assert!(registered.len() > 20, "{registered:?}");
    let keys = config_keys();
    let documents = Document::for_users();
    let named: BTreeSet<String> = documents
        .iter()
        .flat_map(|document| without_php(&document.text))
        .flat_map(metrics_in)
        .filter(|name| !keys.contains(*name))
        .map(str::to_owned)
        .collect();
    assert_eq!(named, registered);
}

#[test]
fn the_alert_rules_and_the_dashboard_use_metrics_that_exist() {
    let registered = registered_metrics();
    for (file, least) in
        [("prometheus/rules.yml", 15), ("prometheus/rules_test.yml", 15), ("grafana/kafka-http-wrapper.json", 40)]
    {
        let text = fs::read_to_string(root().join("conf").join(file)).unwrap();
        let named = metrics_in(&text);
        assert!(named.len() >= least, "{file}: {}", named.len());
        for name in named {
            // The buckets of a histogram are series of their own.
            assert!(registered.contains(name.strip_suffix("_bucket").unwrap_or(name)), "{file}: {name}");
        }
    }
}

/// Returns the paths that a text names, relative to the root of the repository.
fn paths_in(text: &str) -> BTreeSet<&str> {
    let words = text.split(|letter: char| !letter.is_ascii_alphanumeric() && !"_./-".contains(letter));
    words
        .map(|word| word.trim_start_matches("../").trim_start_matches("./").trim_end_matches('.'))
        .filter(|word| FOLDERS.iter().any(|folder| word.starts_with(folder)) && !word.contains("NAME"))
        .collect()
}

#[test]
fn every_path_in_the_docs_exists() {
    let mut absent = Vec::new();
    for document in Document::all() {
        for path in paths_in(&document.text) {
            if !root().join(path).exists() {
                absent.push(format!("{}: {path}", document.name()));
            }
        }
    }
    assert!(absent.is_empty(), "{absent:#?}");
}

/// Returns the anchor that GitHub creates for a heading.
fn anchor(heading: &str) -> String {
    let kept = heading.trim().chars().filter(|letter| letter.is_alphanumeric() || " -_".contains(*letter));
    kept.map(|letter| if letter == ' ' { '-' } else { letter.to_ascii_lowercase() }).collect()
}

#[test]
fn every_link_in_the_docs_has_a_target() {
    let mut broken = Vec::new();
    let mut documents = Document::all();
    documents.push(Document::read("CHANGELOG.md"));
    for document in documents {
        let prose = document.prose();
        let targets = prose.split("](").skip(1).filter_map(|rest| rest.split(')').next());
        for target in targets.filter(|target| !target.starts_with("https://")) {
            let (file, wanted) = target.split_once('#').unwrap_or((target, ""));
            let folder = document.path.parent().unwrap_or(Path::new(""));
            let path = if file.is_empty() { document.path.clone() } else { folder.join(file) };
            let leads_somewhere = root().join(&path).exists()
                && (wanted.is_empty() || {
                    let linked = Document::read(path);
                    let prose = linked.prose();
                    let mut headings = prose.lines().filter(|line| line.starts_with('#'));
                    headings.any(|line| anchor(line.trim_start_matches('#')) == wanted)
                });
            if !leads_somewhere {
                broken.push(format!("{}: {target}", document.name()));
            }
        }
    }
    assert!(broken.is_empty(), "{broken:#?}");
}

/// Returns the targets of a `make` command; variable assignments are left out. Other commands have no targets.
fn make_targets(command: &str) -> Vec<&str> {
    let mut words = command.split_whitespace().skip_while(|word| *word == "#" || word.contains('='));
    match words.next() {
        Some("make") => words
            .filter(|word| !word.contains('='))
            .take_while(|word| word.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'-'))
            .collect(),
        _ => Vec::new(),
    }
}

#[test]
fn every_make_target_in_the_docs_exists() {
    assert_eq!(make_targets("# DEMO_SECONDS=30 make tools demo A=5 # words"), ["tools", "demo"]);
    assert_eq!(make_targets("apt-get install make"), [""; 0]);
    let makefile = fs::read_to_string(root().join("Makefile")).unwrap();
    let targets: BTreeSet<&str> = makefile.lines().filter_map(|line| line.split_once(':')).map(|pair| pair.0).collect();
    for document in Document::all() {
        let inline = document.inline_code();
        let lines = document.blocks().into_iter().flat_map(str::lines);
        for command in inline.iter().map(String::as_str).chain(lines) {
            for target in make_targets(command) {
                assert!(targets.contains(target), "{}: make {target}", document.name());
            }
        }
    }
}

#[test]
fn the_keys_in_tables_of_the_docs_are_in_the_reference_files() {
    let keys = config_keys();
    assert!(keys.contains("max_connections") && keys.contains("window_size") && keys.contains("token"), "{keys:?}");
    let mut count = 0;
    for document in Document::for_users() {
        let mut is_inside = false;
        for line in document.text.lines() {
            is_inside = line.starts_with("| key |") || is_inside && line.starts_with('|');
            let cell = line.split('|').nth(1).filter(|_| is_inside).unwrap_or_default();
            for key in cell.split('`').skip(1).step_by(2) {
                assert!(keys.contains(key), "{}: {key}", document.name());
                count += 1;
            }
        }
    }
    assert!(count > 10, "{count}");
}

/// Returns the keys of an example of YAML that are no keys of these reference files, nor the name of a map that has
/// only such keys. The map `kafka` has the names of Kafka's settings, `outcomes` statuses.
fn unknown_keys(example: &serde_yaml::Value, references: &[String]) -> Vec<String> {
    use serde_yaml::Value;
    let occurs = |key: &str| {
        let starts = [format!(" {key}:"), format!("\n{key}:")];
        references.iter().any(|text| starts.iter().any(|start| text.contains(start)))
    };
    let is_known = |key: &Value| key.as_str().is_some_and(occurs);
    match example {
        Value::Sequence(items) => items.iter().flat_map(|item| unknown_keys(item, references)).collect(),
        Value::Mapping(map) => map
            .iter()
            .flat_map(|(key, value)| {
                let is_name = value.as_mapping().is_some_and(|map| map.keys().all(is_known));
                let unknown = (!is_known(key) && !is_name).then(|| format!("{key:?}"));
                let has_own_keys = matches!(key.as_str(), Some("kafka" | "outcomes"));
                let below = if has_own_keys { Vec::new() } else { unknown_keys(value, references) };
                unknown.into_iter().chain(below)
            })
            .collect(),
        _ => Vec::new(),
    }
}

#[test]
fn every_example_of_yaml_in_the_docs_has_known_keys() {
    let references = reference_files();
    let mut count = 0;
    for document in Document::all() {
        for example in document.blocks().into_iter().filter_map(|block| block.strip_prefix("yaml\n")) {
            let parsed = serde_yaml::from_str(example);
            let parsed = parsed.unwrap_or_else(|cause| panic!("{}: {cause}:\n{example}", document.name()));
            assert_eq!(unknown_keys(&parsed, &references), [""; 0], "{}:\n{example}", document.name());
            count += 1;
        }
    }
    assert!(count > 5, "{count}");
}

#[test]
fn every_name_in_the_docs_occurs_in_the_program() {
    let mut program = sources();
    program.extend(reference_files());
    program.extend(
        ["Cargo.toml", "conf/zabbix/README.md", "conf/prometheus/scrape.yml", "conf/prometheus/rules.yml"]
            .map(|file| Document::read(file).text),
    );
    // The decisions also use names of other programs and crates.
    let decisions = Path::new("docs/decisions.md");
    for document in Document::for_users().iter().filter(|document| document.path != decisions) {
        for code in document.inline_code() {
            let is_name = code.contains('_') && code.bytes().all(|byte| byte.is_ascii_lowercase() || byte == b'_');
            let is_known = !is_name || program.iter().any(|text| text.contains(&code));
            assert!(is_known, "{}: {code}", document.name());
        }
    }
}

#[test]
fn the_readme_and_the_decisions_are_short() {
    let lines = Document::read("README.md").text.lines().count();
    assert!(lines <= MAX_README_LINES, "{lines} lines");
    let decisions = Document::read("docs/decisions.md").text;
    let mut sections = decisions.split("\n## ");
    let _introduction = sections.next();
    for section in sections {
        let (title, body) = section.split_once('\n').unwrap();
        let lines = body.lines().filter(|line| !line.is_empty()).count();
        assert!(lines <= MAX_DECISION_LINES, "{title}: {lines} lines");
    }
}

/// `cargo fmt` wraps the code, and not the comments.
#[test]
fn the_comments_are_as_wide_as_the_code() {
    let mut files = Vec::new();
    for folder in ["src", "tests", "benches", "bin", "demo"] {
        rust_files(&root().join(folder), &mut files);
    }
    let mut wide = Vec::new();
    for file in &files {
        let text = fs::read_to_string(file).unwrap();
        let comments = text.lines().enumerate().filter(|(_, line)| line.trim_start().starts_with("//"));
        let too_wide = comments.filter(|(_, line)| line.chars().count() > MAX_COLUMNS);
        wide.extend(too_wide.map(|(index, _)| format!("{}:{}", file.display(), index + 1)));
    }
    assert!(files.len() > 100 && wide.is_empty(), "{wide:#?}");
}

#[test]
fn the_chinese_readme_has_the_commands_and_names_of_the_english_one() {
    let [english, chinese] = ["README.md", "README.zh-CN.md"].map(Document::read);
    assert_eq!(chinese.blocks(), english.blocks());
    assert_eq!(chinese.inline_code(), english.inline_code());
}

#[test]
fn the_quick_starts_have_valid_configurations() {
    let file = |name| root().join("docs/quickstart").join(name);
    let kproxy = crate::kproxy::load(&file("kproxy.yaml")).unwrap();
    // The path of the module's file is relative to the working directory, which in tests is the root of the checkout.
    let ktransfer = crate::ktransfer::load(&file("ktransfer.yaml")).unwrap_or_else(|problems| panic!("{problems}"));
    let kmonitor = crate::kmonitor::load(&file("kmonitor.yaml")).unwrap();
    assert_eq!(kproxy.broker_hosts, ["localhost:9092"]);
    assert_eq!(ktransfer.module_names().collect::<Vec<_>>(), ["copy"]);
    assert_eq!(kmonitor.clusters[0].name, "quickstart");
}
