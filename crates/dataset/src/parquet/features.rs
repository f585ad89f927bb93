//! The features of Hugging Face's `datasets`, which it keeps as JSON under the key `huggingface` of a Parquet file: by
//! them an image is shown as an image, and a number as the name of a class.

use arrow_schema::{DataType, TimeUnit};
use parquet::file::metadata::FileMetaData;
use serde_json::{Map, Value, json};

use crate::columns::{Column, ColumnType, UNFIT};

/// The key.
pub(super) const KEY: &str = "huggingface";

/// What stands under it in a file with these columns.
pub(super) fn text(columns: &[Column]) -> String {
    let mut features = Map::new();
    for column in columns {
        // What has no feature is left out: `datasets` takes these columns by their type.
        if let Some(feature) = column.feature.clone().or_else(|| of_kind(&column.kind)) {
            features.insert(column.name.clone(), feature);
        }
    }
    features.insert(UNFIT.to_owned(), value("string"));
    json!({"info": {"features": features}}).to_string()
}

fn value(dtype: &str) -> Value {
    json!({"dtype": dtype, "_type": "Value"})
}

fn image() -> Value {
    json!({"_type": "Image"})
}

fn error() -> Value {
    json!({"code": value("string"), "message": value("string"), "hint": value("string"), "attempts": value("int32")})
}

/// Lists in the words that every version of `datasets` reads.
fn list(item: Value) -> Value {
    match item.get("_type") {
        Some(_) => json!({"feature": item, "_type": "Sequence"}),
        // A sequence of structs would be a struct of lists.
        None => json!([item]),
    }
}

fn of_kind(kind: &ColumnType) -> Option<Value> {
    Some(match kind {
        ColumnType::Text | ColumnType::Json => value("string"),
        ColumnType::Texts => list(value("string")),
        ColumnType::Integer => value("int64"),
        ColumnType::Number => value("float64"),
        ColumnType::Boolean => value("bool"),
        ColumnType::Image => image(),
        ColumnType::Images => list(image()),
        ColumnType::Error => error(),
        ColumnType::Errors => list(error()),
        ColumnType::Arrow(inner) => of_type(inner)?,
    })
}

fn of_type(data_type: &DataType) -> Option<Value> {
    let scalar = |name: &str| Some(value(name));
    match data_type {
        DataType::Boolean => scalar("bool"),
        DataType::Int8 => scalar("int8"),
        DataType::Int16 => scalar("int16"),
        DataType::Int32 => scalar("int32"),
        DataType::Int64 => scalar("int64"),
        DataType::UInt8 => scalar("uint8"),
        DataType::UInt16 => scalar("uint16"),
        DataType::UInt32 => scalar("uint32"),
        DataType::UInt64 => scalar("uint64"),
        DataType::Float16 => scalar("float16"),
        DataType::Float32 => scalar("float32"),
        DataType::Float64 => scalar("float64"),
        DataType::Utf8 => scalar("string"),
        DataType::LargeUtf8 => scalar("large_string"),
        DataType::Date32 => scalar("date32"),
        DataType::Date64 => scalar("date64"),
        DataType::Timestamp(unit, zone) => {
            let unit = match unit {
                TimeUnit::Second => "s",
                TimeUnit::Millisecond => "ms",
                TimeUnit::Microsecond => "us",
                TimeUnit::Nanosecond => "ns",
            };
            let zone = zone.as_ref().map_or_else(String::new, |zone| format!(", tz={zone}"));
            scalar(&format!("timestamp[{unit}{zone}]"))
        }
        DataType::List(item) => of_type(item.data_type()).map(list),
        DataType::Struct(fields) => {
            let fields = fields.iter().map(|field| Some((field.name().clone(), of_type(field.data_type())?)));
            fields.collect::<Option<Map<_, _>>>().map(Value::Object)
        }
        _ => None,
    }
}

/// The features that a file declares, by column.
pub(super) fn declared(metadata: &FileMetaData) -> Map<String, Value> {
    let pairs = metadata.key_value_metadata().into_iter().flatten();
    let text = pairs.filter(|pair| pair.key == KEY).find_map(|pair| pair.value.as_deref());
    let mut declared: Value = text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default();
    match declared.pointer_mut("/info/features").map(Value::take) {
        Some(Value::Object(features)) => features,
        _ => Map::new(),
    }
}

/// Whether a feature is an image.
pub(super) fn is_image(feature: &Value) -> bool {
    feature.get("_type").is_some_and(|name| name == "Image")
}

/// A feature that a column of this kind keeps in the output: names of classes, which its type does not tell.
pub(super) fn kept(feature: &Value, kind: &ColumnType) -> Option<Value> {
    let is_class = feature.get("_type").is_some_and(|name| name == "ClassLabel");
    (is_class && *kind == ColumnType::Integer).then(|| feature.clone())
}
