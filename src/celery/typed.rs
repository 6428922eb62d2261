//! Values as types of the program, both ways, with what Python writes although it is not JSON. Pure.

use serde::de::value::{MapAccessDeserializer, MapDeserializer, SeqDeserializer};
use serde::de::{Deserializer, Error as _, IntoDeserializer, Visitor};
use serde::ser::{self, Serializer};
use serde::{Deserialize, Serialize, forward_to_deserialize_any};
use serde_json::Value;

use super::value::{Python, float, not_json, python};

/// A value as a type of the program. A number that JSON has not is one for `f64` and `f32`.
///
/// # Errors
/// What does not fit; of a text with lone surrogates, that it is not UTF-8.
pub fn read<'a, T: Deserialize<'a>>(value: &'a Value) -> Result<T, serde_json::Error> {
    if not_json(value).is_some() { T::deserialize(Lenient(value)) } else { T::deserialize(value) }
}

/// A value of the program. `NaN` and the infinities stay what they are, which [`serde_json::to_value`] makes `null`.
///
/// # Errors
/// What cannot be a value, as a map whose keys are no texts.
pub fn write<T: Serialize + ?Sized>(value: &T) -> Result<Value, serde_json::Error> {
    serde_json::to_value(Item(value))
}

/// Gives a value to serde with what is not JSON in it, where the program asks for a number or a text.
#[derive(Clone, Copy)]
struct Lenient<'de>(&'de Value);

impl<'de> IntoDeserializer<'de, serde_json::Error> for Lenient<'de> {
    type Deserializer = Self;

    fn into_deserializer(self) -> Self {
        self
    }
}

macro_rules! only_json {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
            match python(self.0) {
                Some(Python::Text(odd)) => Err(Self::Error::custom(odd.complaint())),
                Some(Python::Float(name)) => Err(Self::Error::custom(format!("{name} is not JSON"))),
                _ => self.0.$method(visitor),
            }
        }
    )*};
}

macro_rules! floats {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
            match python(self.0) {
                Some(Python::Float("NaN")) => visitor.visit_f64(f64::NAN),
                Some(Python::Float("Infinity")) => visitor.visit_f64(f64::INFINITY),
                Some(Python::Float(_)) => visitor.visit_f64(f64::NEG_INFINITY),
                _ => self.0.$method(visitor),
            }
        }
    )*};
}

impl<'de> Deserializer<'de> for Lenient<'de> {
    type Error = serde_json::Error;

    fn deserialize_any<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        match self.0 {
            Value::Array(items) => {
                let mut items = SeqDeserializer::new(items.iter().map(Lenient));
                let read = visitor.visit_seq(&mut items)?;
                items.end().map(|()| read)
            }
            Value::Object(map) => {
                let mut fields = MapDeserializer::new(map.iter().map(|(key, value)| (key.as_str(), Lenient(value))));
                let read = visitor.visit_map(&mut fields)?;
                fields.end().map(|()| read)
            }
            leaf => leaf.deserialize_any(visitor),
        }
    }

    fn deserialize_option<V: Visitor<'de>>(self, visitor: V) -> Result<V::Value, Self::Error> {
        if self.0.is_null() { visitor.visit_none() } else { visitor.visit_some(self) }
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(self, _: &'static str, visitor: V) -> Result<V::Value, Self::Error> {
        visitor.visit_newtype_struct(self)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> Result<V::Value, Self::Error> {
        match self.0 {
            // A variant with something in it.
            Value::Object(map) if map.len() == 1 && python(self.0).is_none() => {
                let fields = map.iter().map(|(key, value)| (key.as_str(), Lenient(value)));
                visitor.visit_enum(MapAccessDeserializer::new(MapDeserializer::new(fields)))
            }
            other => other.deserialize_enum(name, variants, visitor),
        }
    }

    floats! { deserialize_f32 deserialize_f64 }

    only_json! {
        deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128 deserialize_u8 deserialize_u16
        deserialize_u32 deserialize_u64 deserialize_u128 deserialize_bool deserialize_char deserialize_str
        deserialize_string deserialize_bytes deserialize_byte_buf
    }

    forward_to_deserialize_any! { unit unit_struct seq tuple tuple_struct map struct identifier ignored_any }
}

/// A part of a value of the program.
struct Item<'a, T: ?Sized>(&'a T);

impl<T: Serialize + ?Sized> Serialize for Item<'_, T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.0.serialize(Exact(serializer))
    }
}

/// Passes everything on, but the numbers that JSON has not as their marks.
struct Exact<S>(S);

macro_rules! pass_on {
    ($($method:ident: $kind:ty,)*) => {$(
        fn $method(self, value: $kind) -> Result<S::Ok, S::Error> {
            self.0.$method(value)
        }
    )*};
}

impl<S: Serializer> Serializer for Exact<S> {
    type Ok = S::Ok;
    type Error = S::Error;
    type SerializeSeq = Exact<S::SerializeSeq>;
    type SerializeTuple = Exact<S::SerializeTuple>;
    type SerializeTupleStruct = Exact<S::SerializeTupleStruct>;
    type SerializeTupleVariant = Exact<S::SerializeTupleVariant>;
    type SerializeMap = Exact<S::SerializeMap>;
    type SerializeStruct = Exact<S::SerializeStruct>;
    type SerializeStructVariant = Exact<S::SerializeStructVariant>;

    pass_on! {
        serialize_bool: bool, serialize_char: char, serialize_str: &str, serialize_bytes: &[u8], serialize_i8: i8,
        serialize_i16: i16, serialize_i32: i32, serialize_i64: i64, serialize_i128: i128, serialize_u8: u8,
        serialize_u16: u16, serialize_u32: u32, serialize_u64: u64, serialize_u128: u128,
        serialize_unit_struct: &'static str,
    }

    fn serialize_f32(self, value: f32) -> Result<S::Ok, S::Error> {
        if value.is_finite() { self.0.serialize_f32(value) } else { float(value.into()).serialize(self.0) }
    }

    fn serialize_f64(self, value: f64) -> Result<S::Ok, S::Error> {
        if value.is_finite() { self.0.serialize_f64(value) } else { float(value).serialize(self.0) }
    }

    fn serialize_none(self) -> Result<S::Ok, S::Error> {
        self.0.serialize_none()
    }

    fn serialize_unit(self) -> Result<S::Ok, S::Error> {
        self.0.serialize_unit()
    }

    fn serialize_some<T: Serialize + ?Sized>(self, value: &T) -> Result<S::Ok, S::Error> {
        self.0.serialize_some(&Item(value))
    }

    fn serialize_unit_variant(self, name: &'static str, at: u32, variant: &'static str) -> Result<S::Ok, S::Error> {
        self.0.serialize_unit_variant(name, at, variant)
    }

    fn serialize_newtype_struct<T: Serialize + ?Sized>(self, name: &'static str, value: &T) -> Result<S::Ok, S::Error> {
        self.0.serialize_newtype_struct(name, &Item(value))
    }

    fn serialize_newtype_variant<T: Serialize + ?Sized>(
        self,
        name: &'static str,
        at: u32,
        variant: &'static str,
        value: &T,
    ) -> Result<S::Ok, S::Error> {
        self.0.serialize_newtype_variant(name, at, variant, &Item(value))
    }

    fn serialize_seq(self, len: Option<usize>) -> Result<Self::SerializeSeq, S::Error> {
        self.0.serialize_seq(len).map(Exact)
    }

    fn serialize_tuple(self, len: usize) -> Result<Self::SerializeTuple, S::Error> {
        self.0.serialize_tuple(len).map(Exact)
    }

    fn serialize_tuple_struct(self, name: &'static str, len: usize) -> Result<Self::SerializeTupleStruct, S::Error> {
        self.0.serialize_tuple_struct(name, len).map(Exact)
    }

    fn serialize_tuple_variant(
        self,
        name: &'static str,
        at: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Self::SerializeTupleVariant, S::Error> {
        self.0.serialize_tuple_variant(name, at, variant, len).map(Exact)
    }

    fn serialize_map(self, len: Option<usize>) -> Result<Self::SerializeMap, S::Error> {
        self.0.serialize_map(len).map(Exact)
    }

    fn serialize_struct(self, name: &'static str, len: usize) -> Result<Self::SerializeStruct, S::Error> {
        self.0.serialize_struct(name, len).map(Exact)
    }

    fn serialize_struct_variant(
        self,
        name: &'static str,
        at: u32,
        variant: &'static str,
        len: usize,
    ) -> Result<Self::SerializeStructVariant, S::Error> {
        self.0.serialize_struct_variant(name, at, variant, len).map(Exact)
    }
}

macro_rules! items {
    ($($kind:ident: $method:ident,)*) => {$(
        impl<S: ser::$kind> ser::$kind for Exact<S> {
            type Ok = S::Ok;
            type Error = S::Error;

            fn $method<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), S::Error> {
                self.0.$method(&Item(value))
            }

            fn end(self) -> Result<S::Ok, S::Error> {
                self.0.end()
            }
        }
    )*};
}

macro_rules! fields {
    ($($kind:ident,)*) => {$(
        impl<S: ser::$kind> ser::$kind for Exact<S> {
            type Ok = S::Ok;
            type Error = S::Error;

            fn serialize_field<T: Serialize + ?Sized>(&mut self, key: &'static str, value: &T) -> Result<(), S::Error> {
                self.0.serialize_field(key, &Item(value))
            }

            fn end(self) -> Result<S::Ok, S::Error> {
                self.0.end()
            }
        }
    )*};
}

items! {
    SerializeSeq: serialize_element,
    SerializeTuple: serialize_element,
    SerializeTupleStruct: serialize_field,
    SerializeTupleVariant: serialize_field,
}

fields! { SerializeStruct, SerializeStructVariant, }

impl<S: ser::SerializeMap> ser::SerializeMap for Exact<S> {
    type Ok = S::Ok;
    type Error = S::Error;

    fn serialize_key<T: Serialize + ?Sized>(&mut self, key: &T) -> Result<(), S::Error> {
        self.0.serialize_key(key)
    }

    fn serialize_value<T: Serialize + ?Sized>(&mut self, value: &T) -> Result<(), S::Error> {
        self.0.serialize_value(&Item(value))
    }

    fn end(self) -> Result<S::Ok, S::Error> {
        self.0.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::celery::json;
    use serde_json::json;

    #[test]
    fn a_program_gets_what_fits_and_is_told_what_does_not() {
        #[derive(Debug, PartialEq, Deserialize)]
        struct Job {
            score: f64,
            name: Option<String>,
            more: Vec<f32>,
        }
        let value = json::read(br#"{"score": -Infinity, "name": "x", "more": [Infinity, 1]}"#).unwrap();
        let read_job: Job = read(&value).unwrap();
        let expected = Job { score: f64::NEG_INFINITY, name: Some("x".to_owned()), more: vec![f32::INFINITY, 1.0] };
        assert_eq!(read_job, expected);
        assert!(read::<f64>(&float(f64::NAN)).unwrap().is_nan());
        let value = json::read(br#"{"score": NaN, "name": "caf\udce9", "more": []}"#).unwrap();
        let error = read::<Job>(&value).unwrap_err().to_string();
        assert_eq!(error, r"a text with a lone surrogate, 'caf\udce9', is not UTF-8");
        assert_eq!(read::<u8>(&float(f64::NAN)).unwrap_err().to_string(), "NaN is not JSON");
        assert_eq!(read::<Value>(&value).unwrap(), value, "what is passed on stays");
    }

    #[test]
    fn what_a_program_writes_is_what_it_reads_again() {
        #[derive(Debug, PartialEq, Serialize, Deserialize)]
        enum Shape {
            Unit,
            One(f64),
            Two(f32, u8),
            Named { x: Option<f64> },
        }
        let all = vec![
            Shape::Unit,
            Shape::One(f64::INFINITY),
            Shape::Two(f32::NEG_INFINITY, 7),
            Shape::Named { x: Some(1.5) },
            Shape::Named { x: None },
        ];
        let value = write(&all).unwrap();
        let text = r#"["Unit",{"One":Infinity},{"Two":[-Infinity,7]},{"Named":{"x":1.5}},{"Named":{"x":null}}]"#;
        assert_eq!(json::write(&value), text);
        assert_eq!(read::<Vec<Shape>>(&value).unwrap(), all);
        // Values that are there already, with numbers of any size.
        let passed = json::read(br#"{"a":[NaN,"caf\udce9",123456789012345678901234567890,0.1]}"#).unwrap();
        assert_eq!(write(&passed).unwrap(), passed);
        assert_eq!(write(&(f32::NAN, 0.1f32, 'x', ())).unwrap(), json!([float(f64::NAN), 0.1f32, "x", null]));
    }
}
