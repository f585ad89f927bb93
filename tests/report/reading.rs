//! A report's data, without a browser.

use std::io::Read;
use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

/// The text of a report's data element.
pub(crate) fn element(html: &str, id: &str) -> String {
    let begin = format!("<script type=\"text/plain\" id=\"{id}\">");
    let from = html.find(&begin).unwrap_or_else(|| panic!("no {id}")) + begin.len();
    html[from..].split("</script>").next().unwrap().to_owned()
}

/// Its JSON.
pub(crate) fn unpacked(html: &str, id: &str) -> Value {
    let packed = STANDARD.decode(element(html, id)).unwrap();
    let mut text = String::new();
    flate2::read::GzDecoder::new(packed.as_slice()).read_to_string(&mut text).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// The index of a report's file.
pub(crate) fn index(file: &Path) -> Value {
    unpacked(&std::fs::read_to_string(file).unwrap(), "index")
}
