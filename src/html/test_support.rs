//! Checks of a page that the unit tests of all pages share.

use std::collections::BTreeSet;

/// Returns the text between `start` and `end`, each time that they occur.
pub(crate) fn between<'a>(text: &'a str, start: &'a str, end: &'a str) -> Vec<&'a str> {
    text.split(start).skip(1).filter_map(|rest| rest.split_once(end)).map(|(found, _)| found).collect()
}

/// Names of which a page must show every character as text.
pub(crate) const HOSTILE_NAMES: [&str; 3] =
    ["<img src=x onerror=alert(1)>", "\"><script>alert(1)</script>", "' autofocus onfocus='alert(1)\u{202e}\0"];

/// Asserts that a page with hostile names is as it should be: the names are text, there is no script or style in it,
/// nothing is loaded from elsewhere, and no id is used twice.
pub(crate) fn assert_harmless(text: &str) {
    for bad in ["<img", "<script>", "<style", " style=", "javascript:", "\u{202e}", "\0", "http://", "https://"] {
        assert!(!text.contains(bad), "{bad:?} in {text}");
    }
    // Outside of values, which are quoted, an attribute that runs a script would follow a blank.
    let mut outside = text.split('"').step_by(2);
    assert!(outside.all(|part| !part.contains(" onerror=") || part.contains("&lt;img")), "{text}");
    let values = between(text, "=\"", "\"");
    assert!(values.iter().all(|value| !value.contains(['<', '>'])), "{text}");
    assert!(between(text, "<script ", ">").iter().all(|script| script.starts_with("src=\"/static/")), "{text}");
    let ids = between(text, " id=\"", "\"");
    assert_eq!(ids.iter().collect::<BTreeSet<_>>().len(), ids.len(), "{ids:?}");
}

/// Asserts that the fragment that the script requests has the same parts as the page.
pub(crate) fn assert_same_rows(page: &str, fragment: &str) {
    for part in fragment.split_inclusive("\n<").map(|part| part.trim_end_matches('<')) {
        assert!(page.contains(part.trim()), "{part}");
    }
    for id in ["summary", "verdicts", "shown", "modules", "pages"] {
        assert_eq!(fragment.matches(&format!(" id=\"{id}\"")).count(), 1, "{id}");
    }
}

/// Writes a page into the folder that the environment variable `SAMPLE_PAGES` names, else into one that is removed.
pub(crate) fn write_sample(name: &str, page: &str) {
    let folder = tempfile::tempdir().unwrap();
    let folder = std::env::var_os("SAMPLE_PAGES").map_or_else(|| folder.path().to_owned(), Into::into);
    let file = folder.join(name).with_extension("html");
    std::fs::write(&file, page).unwrap();
    assert!(file.metadata().unwrap().len() > 5_000, "{name}");
    let assets = super::assets::assets();
    for asset in [&assets.style, &assets.script, &assets.icon] {
        let file = folder.join(asset.path.trim_start_matches('/'));
        std::fs::create_dir_all(file.parent().unwrap()).unwrap();
        std::fs::write(&file, asset.text).unwrap();
    }
}
