package main

import (
	"fmt"
	"os"

	"github.com/hashicorp/hcl/v2"
	"github.com/hashicorp/hcl/v2/ext/typeexpr"
	"github.com/hashicorp/hcl/v2/hcldec"
	"github.com/hashicorp/hcl/v2/hclsyntax"
	"github.com/zclconf/go-cty/cty"
	"github.com/zclconf/go-cty/cty/msgpack"
	"google.golang.org/protobuf/proto"

	"pannier.example/conformance/wire/hclspec"
)

// encode turns the text of a `config { .. }` block into the msgpack that Nomad sends: the driver's schema becomes a decoder of
// HCL's own library, and its value is encoded by the library that owns the type system.
func encode(spec *hclspec.Spec, text string) []byte {
	return must(tryEncode(spec, text))
}

func tryEncode(spec *hclspec.Spec, text string) ([]byte, error) {
	decoder, err := decoderOf(spec)
	if err != nil {
		return nil, err
	}
	file, problems := hclsyntax.ParseConfig([]byte(text), "config.hcl", hcl.InitialPos)
	if problems.HasErrors() {
		return nil, problems
	}
	value, problems := hcldec.Decode(file.Body, decoder, nil)
	if problems.HasErrors() {
		return nil, problems
	}
	return msgpack.Marshal(value, value.Type())
}

// encodeFiles prints the msgpack of a configuration by a serialized schema, for a comparison with ours.
func encodeFiles(files []string) {
	var spec hclspec.Spec
	if err := proto.Unmarshal(must(os.ReadFile(files[0])), &spec); err != nil {
		panic(err)
	}
	bytes, err := tryEncode(&spec, string(must(os.ReadFile(files[1]))))
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	must(os.Stdout.Write(bytes))
}

// decoderOf translates a schema as it comes over the wire.
func decoderOf(spec *hclspec.Spec) (hcldec.Spec, error) {
	switch block := spec.GetBlock().(type) {
	case *hclspec.Spec_Object:
		object := hcldec.ObjectSpec{}
		for name, attribute := range block.Object.Attributes {
			nested, err := decoderOf(attribute)
			if err != nil {
				return nil, fmt.Errorf("%s: %w", name, err)
			}
			object[name] = nested
		}
		return object, nil
	case *hclspec.Spec_Array:
		tuple := hcldec.TupleSpec{}
		for _, value := range block.Array.Values {
			nested, err := decoderOf(value)
			if err != nil {
				return nil, err
			}
			tuple = append(tuple, nested)
		}
		return tuple, nil
	case *hclspec.Spec_Attr:
		kind, err := typeOf(block.Attr.Type)
		return &hcldec.AttrSpec{Name: block.Attr.Name, Type: kind, Required: block.Attr.Required}, err
	case *hclspec.Spec_BlockAttrs:
		kind, err := typeOf(block.BlockAttrs.Type)
		return &hcldec.BlockAttrsSpec{TypeName: block.BlockAttrs.Name, ElementType: kind, Required: block.BlockAttrs.Required}, err
	case *hclspec.Spec_BlockValue:
		nested, err := decoderOf(block.BlockValue.Nested)
		return &hcldec.BlockSpec{TypeName: block.BlockValue.Name, Nested: nested, Required: block.BlockValue.Required}, err
	case *hclspec.Spec_BlockList:
		nested, err := decoderOf(block.BlockList.Nested)
		least, most := int(block.BlockList.MinItems), int(block.BlockList.MaxItems)
		return &hcldec.BlockListSpec{TypeName: block.BlockList.Name, Nested: nested, MinItems: least, MaxItems: most}, err
	case *hclspec.Spec_BlockSet:
		nested, err := decoderOf(block.BlockSet.Nested)
		least, most := int(block.BlockSet.MinItems), int(block.BlockSet.MaxItems)
		return &hcldec.BlockSetSpec{TypeName: block.BlockSet.Name, Nested: nested, MinItems: least, MaxItems: most}, err
	case *hclspec.Spec_BlockMap:
		nested, err := decoderOf(block.BlockMap.Nested)
		return &hcldec.BlockMapSpec{TypeName: block.BlockMap.Name, LabelNames: block.BlockMap.Labels, Nested: nested}, err
	case *hclspec.Spec_Default:
		primary, err := decoderOf(block.Default.Primary)
		if err != nil {
			return nil, err
		}
		otherwise, err := decoderOf(block.Default.Default)
		return &hcldec.DefaultSpec{Primary: primary, Default: otherwise}, err
	case *hclspec.Spec_Literal:
		expression, problems := hclsyntax.ParseExpression([]byte(block.Literal.Value), "literal", hcl.InitialPos)
		if problems.HasErrors() {
			return nil, problems
		}
		value, problems := expression.Value(nil)
		if problems.HasErrors() {
			return nil, problems
		}
		return &hcldec.LiteralSpec{Value: value}, nil
	default:
		return nil, fmt.Errorf("a schema of kind %T", block)
	}
}

func typeOf(text string) (cty.Type, error) {
	expression, problems := hclsyntax.ParseExpression([]byte(text), "type", hcl.InitialPos)
	if problems.HasErrors() {
		return cty.NilType, problems
	}
	kind, problems := typeexpr.TypeConstraint(expression)
	if problems.HasErrors() {
		return cty.NilType, problems
	}
	return kind, nil
}
