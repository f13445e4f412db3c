/* Spans of a gzip stream, inflated by themselves (zlib's examples/zran.c shows the way). */
#include "span.h"

#include <errno.h>
#include <limits.h>
#include <stdbool.h>
#include <stdlib.h>
#include <string.h>
#include <zlib.h>

#include "pyerofs.h"

enum { RAW = -15, GZIP = 31, TRAILER = 8 }; /* windowBits of inflateInit2; bytes of a CRC and a size */

int inflate_failed(int result)
{
	if (result == Z_MEM_ERROR)
		return -ENOMEM;
	return result == Z_OK || result == Z_STREAM_END || result == Z_BUF_ERROR ? 0 : 1;
}

/* A stream that begins at the span. 0 or -errno. */
static int begin(z_stream *stream, const unsigned char *span, uint64_t length, uint32_t bits, const void *window)
{
	memset(stream, 0, sizeof(*stream));
	if (bits > 7 || (bits && !length) || length > UINT_MAX)
		return -EINVAL;
	if (inflateInit2(stream, RAW) != Z_OK)
		return -ENOMEM;
	if (bits) {
		inflatePrime(stream, (int)bits, span[0] >> (8 - bits));
		span++;
		length--;
	}
	if (window)
		inflateSetDictionary(stream, window, PE_WINDOW);
	stream->next_in = (unsigned char *)span; /* zlib does not write there */
	stream->avail_in = (unsigned)length;
	return 0;
}

/* Passes over the end of a raw member, and gets ready for another one; false where nothing follows. */
static bool next_member(z_stream *stream, bool raw)
{
	if (raw) {
		if (stream->avail_in < TRAILER)
			return false;
		stream->avail_in -= TRAILER;
		stream->next_in += TRAILER;
	}
	return stream->avail_in && inflateReset2(stream, GZIP) == Z_OK;
}

int pe_span_inflate(const void *span, uint64_t span_length, uint32_t bits, const void *window, void *plain,
		    uint64_t length)
{
	z_stream stream;
	bool raw = true;
	int result = length > UINT_MAX ? -EINVAL : begin(&stream, span, span_length, bits, window);

	if (result)
		return result;
	stream.next_out = plain;
	stream.avail_out = (unsigned)length;
	while (stream.avail_out) {
		int done = inflate(&stream, Z_NO_FLUSH);
		int failed = inflate_failed(done);

		if (failed) {
			result = failed < 0 ? failed : PE_SPAN_CORRUPT;
			break;
		}
		if (!stream.avail_out)
			break;
		if (done == Z_STREAM_END && next_member(&stream, raw)) {
			raw = false;
			continue;
		}
		if (done == Z_STREAM_END || !stream.avail_in) {
			result = PE_SPAN_SHORT;
			break;
		}
	}
	inflateEnd(&stream);
	return result;
}

/*
 * Inflates as much as can refer to the window, or as there is of the member. The length, or -EAGAIN when there is too
 * little of the span, -EBADMSG when it is corrupt, -ENOMEM.
 */
static int64_t inflate_first(const void *span, uint64_t span_length, uint32_t bits, const void *window,
			     unsigned char *plain)
{
	z_stream stream;
	int done, failed, result = begin(&stream, span, span_length, bits, window);
	int64_t length;

	if (result)
		return result;
	stream.next_out = plain;
	stream.avail_out = PE_WINDOW;
	done = inflate(&stream, Z_NO_FLUSH);
	length = PE_WINDOW - (int64_t)stream.avail_out;
	failed = inflate_failed(done);
	inflateEnd(&stream);
	if (failed)
		return failed < 0 ? failed : -EBADMSG;
	return done == Z_STREAM_END || length == PE_WINDOW ? length : -EAGAIN;
}

/*
 * Which bytes of the window come out of it, is told by inflating with windows that say where each of their bytes is:
 * the lower half of its number, the same inverted, and the upper half. Where the first two agree a byte is no byte of
 * the window's. Nothing behind the first PE_WINDOW bytes can refer to it.
 */
int pe_span_reduce(const void *span, uint64_t span_length, uint32_t bits, const void *window, void *reduced)
{
	enum { LOWER, INVERTED, UPPER, WITH_ALL, WITH_REDUCED, PASSES };
	unsigned char *numbers = malloc(PE_WINDOW), *plain = malloc((size_t)PASSES * PE_WINDOW);
	unsigned char *of[PASSES], *kept = reduced;
	int64_t length = numbers && plain ? 0 : -ENOMEM;

	for (int pass = 0; pass < PASSES && length >= 0; pass++) {
		const void *with = pass == WITH_ALL ? window : pass == WITH_REDUCED ? reduced : numbers;

		of[pass] = plain + (size_t)pass * PE_WINDOW;
		for (unsigned i = 0; i < PE_WINDOW && with == numbers; i++)
			numbers[i] = (unsigned char)(pass == UPPER ? i >> 8 : pass == LOWER ? i : ~i);
		if (pass == WITH_REDUCED) {
			memset(kept, 0, PE_WINDOW);
			for (int64_t i = 0; i < length; i++) {
				unsigned at = (of[LOWER][i] | (unsigned)of[UPPER][i] << 8) % PE_WINDOW;

				if (of[LOWER][i] != of[INVERTED][i])
					kept[at] = ((const unsigned char *)window)[at];
			}
		}
		length = inflate_first(span, span_length, bits, with, of[pass]);
	}
	if (length >= 0 && memcmp(of[WITH_ALL], of[WITH_REDUCED], (size_t)length))
		length = -EBADMSG;
	if (length < 0)
		memcpy(reduced, window, PE_WINDOW);
	free(numbers);
	free(plain);
	if (length == -EAGAIN)
		return PE_SPAN_SHORT;
	if (length == -EBADMSG)
		return PE_SPAN_CORRUPT;
	return length < 0 ? (int)length : PE_SPAN_RIGHT;
}
