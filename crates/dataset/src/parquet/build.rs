//! From the JSON values of rows to Arrow arrays.

use std::sync::Arc;

use arrow_array::ArrayRef;
use arrow_array::builder::{
    BinaryBuilder, BooleanBuilder, Float64Builder, Int32Builder, Int64Builder, ListBuilder, StringBuilder,
    StructBuilder,
};
use arrow_json::ReaderBuilder;
use arrow_schema::{ArrowError, DataType, Field, Fields};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;
use serde_json::value::RawValue;
use vgen_core::{Fault, Row};

use crate::columns::{Column, ColumnType};

/// The type of a column in Arrow's words.
pub(super) fn data_type(kind: &ColumnType) -> DataType {
    match kind {
        ColumnType::Text | ColumnType::Json => DataType::Utf8,
        ColumnType::Texts => list(DataType::Utf8),
        ColumnType::Integer => DataType::Int64,
        ColumnType::Number => DataType::Float64,
        ColumnType::Boolean => DataType::Boolean,
        ColumnType::Error => DataType::Struct(error_fields()),
        ColumnType::Errors => list(DataType::Struct(error_fields())),
        ColumnType::Image => DataType::Struct(image_fields()),
        ColumnType::Images => list(DataType::Struct(image_fields())),
        ColumnType::Arrow(inner) => inner.clone(),
    }
}

fn list(item: DataType) -> DataType {
    DataType::List(Arc::new(Field::new_list_field(item, true)))
}

fn error_fields() -> Fields {
    Fields::from(vec![
        Field::new("code", DataType::Utf8, true),
        Field::new("message", DataType::Utf8, true),
        Field::new("hint", DataType::Utf8, true),
        Field::new("attempts", DataType::Int32, true),
    ])
}

fn image_fields() -> Fields {
    Fields::from(vec![Field::new("bytes", DataType::Binary, true), Field::new("path", DataType::Utf8, true)])
}

/// Whether values of a type can be made from JSON.
pub(super) fn decodes(data_type: &DataType) -> bool {
    let field = Field::new("value", data_type.clone(), true);
    ReaderBuilder::new_with_field(field).build_decoder().is_ok()
}

/// The array of a column. What does not fit is null in it and goes to `unfit`, of the row's number.
pub(super) fn array<'a>(
    column: &Column,
    rows: impl ExactSizeIterator<Item = &'a Row> + Clone,
    mut unfit: impl FnMut(usize),
) -> Result<ArrayRef, ArrowError> {
    let values = rows.map(|row| row.get(&column.name));
    let parsed = |value: Option<&RawValue>| match value {
        None => Value::Null,
        Some(value) => serde_json::from_str(value.get()).unwrap_or(Value::Null),
    };
    macro_rules! scalars {
        ($builder:expr, $convert:expr) => {{
            let mut builder = $builder;
            for (at, value) in values.enumerate() {
                match parsed(value) {
                    Value::Null => builder.append_null(),
                    value => match $convert(&value) {
                        Some(value) => builder.append_value(value),
                        None => {
                            builder.append_null();
                            unfit(at);
                        }
                    },
                }
            }
            Ok(Arc::new(builder.finish()))
        }};
    }
    match &column.kind {
        ColumnType::Text => scalars!(StringBuilder::new(), |value: &Value| value.as_str().map(str::to_owned)),
        ColumnType::Integer => scalars!(Int64Builder::new(), Value::as_i64),
        ColumnType::Number => scalars!(Float64Builder::new(), Value::as_f64),
        ColumnType::Boolean => scalars!(BooleanBuilder::new(), Value::as_bool),
        ColumnType::Json => {
            let mut builder = StringBuilder::new();
            for value in values {
                builder.append_option(value.map(RawValue::get).filter(|text| *text != "null"));
            }
            Ok(Arc::new(builder.finish()))
        }
        ColumnType::Texts => {
            let mut builder = ListBuilder::new(StringBuilder::new());
            for (at, value) in values.enumerate() {
                match parsed(value) {
                    Value::Null => builder.append_null(),
                    Value::Array(items) if items.iter().all(|item| item.is_string() || item.is_null()) => {
                        items.iter().for_each(|item| builder.values().append_option(item.as_str()));
                        builder.append(true);
                    }
                    Value::String(one) => {
                        builder.values().append_value(one);
                        builder.append(true);
                    }
                    _ => {
                        builder.append_null();
                        unfit(at);
                    }
                }
            }
            Ok(Arc::new(builder.finish()))
        }
        ColumnType::Error | ColumnType::Image => {
            let (fields, append) = structs(&column.kind);
            let mut builder = StructBuilder::from_fields(fields, values.len());
            for (at, value) in values.enumerate() {
                match append(&mut builder, &parsed(value)) {
                    Appended::Yes => {}
                    Appended::Null(fits) => {
                        if !fits {
                            unfit(at);
                        }
                    }
                }
            }
            Ok(Arc::new(builder.finish()))
        }
        ColumnType::Errors | ColumnType::Images => {
            let (fields, append) = structs(&column.kind);
            let mut builder = ListBuilder::new(StructBuilder::from_fields(fields, values.len()));
            for (at, value) in values.enumerate() {
                let items = match parsed(value) {
                    Value::Null => {
                        builder.append_null();
                        continue;
                    }
                    Value::Array(items) => items,
                    one => vec![one],
                };
                let mut fit = true;
                for item in &items {
                    fit &= !matches!(append(builder.values(), item), Appended::Null(false));
                }
                builder.append(true);
                if !fit {
                    unfit(at);
                }
            }
            Ok(Arc::new(builder.finish()))
        }
        ColumnType::Arrow(inner) => decode(inner, values, unfit),
    }
}

enum Appended {
    Yes,
    /// A null, and whether that is what the value says.
    Null(bool),
}

type Append = fn(&mut StructBuilder, &Value) -> Appended;

fn structs(kind: &ColumnType) -> (Fields, Append) {
    match kind {
        ColumnType::Error | ColumnType::Errors => (error_fields(), append_error),
        _ => (image_fields(), append_image),
    }
}

fn text(builder: &mut StructBuilder, at: usize, value: Option<&str>) {
    if let Some(field) = builder.field_builder::<StringBuilder>(at) {
        field.append_option(value);
    }
}

fn append_error(builder: &mut StructBuilder, value: &Value) -> Appended {
    let object = value.as_object();
    let get = |name: &str| object.and_then(|object| object.get(name));
    for (at, name) in ["code", "message", "hint"].into_iter().enumerate() {
        text(builder, at, get(name).and_then(Value::as_str));
    }
    let attempts = get("attempts").and_then(Value::as_i64).and_then(|attempts| i32::try_from(attempts).ok());
    if let Some(field) = builder.field_builder::<Int32Builder>(3) {
        field.append_option(attempts);
    }
    builder.append(object.is_some());
    if object.is_some() { Appended::Yes } else { Appended::Null(value.is_null()) }
}

fn append_image(builder: &mut StructBuilder, value: &Value) -> Appended {
    let (bytes, path) = image(value);
    let there = bytes.is_some() || path.is_some();
    if let Some(field) = builder.field_builder::<BinaryBuilder>(0) {
        field.append_option(bytes);
    }
    text(builder, 1, path.as_deref());
    builder.append(there);
    if there { Appended::Yes } else { Appended::Null(value.is_null()) }
}

/// Bytes and name of an image.
fn image(value: &Value) -> (Option<Vec<u8>>, Option<String>) {
    match value {
        Value::String(text) => match text.strip_prefix("data:").and_then(|rest| rest.split_once(";base64,")) {
            Some((_, encoded)) => (STANDARD.decode(encoded).ok(), None),
            None => (None, Some(text.clone())),
        },
        Value::Object(object) => {
            let bytes = object.get("bytes").and_then(Value::as_str).and_then(|text| STANDARD.decode(text).ok());
            let path = object.get("path").or_else(|| object.get("url")).and_then(Value::as_str);
            (bytes, path.map(str::to_owned))
        }
        _ => (None, None),
    }
}

/// Values of a type of the input's own schema, by Arrow's own reading of JSON.
fn decode<'a>(
    inner: &DataType,
    values: impl ExactSizeIterator<Item = Option<&'a RawValue>>,
    mut unfit: impl FnMut(usize),
) -> Result<ArrayRef, ArrowError> {
    let field = Field::new("value", inner.clone(), true);
    let decoder = || ReaderBuilder::new_with_field(field.clone()).with_batch_size(values.len().max(1)).build_decoder();
    let mut decoder = decoder()?;
    for (at, value) in values.enumerate() {
        let text = value.map_or("null", RawValue::get);
        if text != "null" && !fits(&field, text) {
            unfit(at);
            decoder.decode(b"null\n")?;
            continue;
        }
        decoder.decode(text.as_bytes())?;
        decoder.decode(b"\n")?;
    }
    match decoder.flush()? {
        Some(batch) => Ok(Arc::clone(batch.column(0))),
        None => Ok(arrow_array::new_empty_array(inner)),
    }
}

/// Whether a single value can be read: the decoder of many loses all of them for one.
fn fits(field: &Field, text: &str) -> bool {
    let Ok(mut decoder) = ReaderBuilder::new_with_field(field.clone()).with_batch_size(1).build_decoder() else {
        return false;
    };
    decoder.decode(text.as_bytes()).is_ok() && decoder.flush().is_ok()
}

/// What does not fit in the columns, as the text of the column for it.
pub(super) fn unfit_text(row: &Row, columns: &[Column], unfit: &[usize]) -> Result<Option<String>, Fault> {
    let mut rest = Row::new();
    for (name, value) in row.iter() {
        let at = columns.iter().position(|column| column.name == name);
        if at.is_none_or(|at| unfit.contains(&at)) {
            rest.set_raw(name, value.to_owned());
        }
    }
    Ok((!rest.is_empty()).then(|| rest.to_json()))
}
